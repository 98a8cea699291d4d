// The answers as a CSV table that no spreadsheet runs as a formula.

// As foveal.files.neutral_cell has it (OWASP, "CSV Injection"): such text gets a leading apostrophe.
const FORMULA_START = /^[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20']/u;

function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = FORMULA_START.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Text of a table, given its column names and rows. */
export function csvText(columns, rows) {
  return [columns, ...rows].map((row) => `${row.map(cell).join(",")}\r\n`).join("");
}

/**
 * The session's table: a row an answer, probabilities at full precision under p_<class>.
 * `rows` are {picture, answer, truth}.
 */
export function sessionTable(rows) {
  const classes = [...new Set(rows.flatMap(({ answer }) => answer.names ?? []))];
  const columns = [
    "path", "status", "reason", "predicted", "probability", "true_class", "true_class_from", "right", "model", "tta",
    "decode_seconds", "queue_seconds", "compute_seconds", "total_seconds", "asked_at", ...classes.map((name) => `p_${name}`),
  ];
  const lines = rows.map(({ picture, answer, truth }) => {
    const probabilities = new Map(answer.names?.map((name, number) => [name, answer.probabilities[number]]));
    const isJudged = answer.status === "ok" && truth;
    return [
      picture.path, answer.status, answer.reason, answer.predicted, answer.probability,
      truth?.name, truth?.from, isJudged ? String(answer.predicted === truth.name) : "", answer.model, answer.tta,
      answer.seconds?.decode, answer.seconds?.queue, answer.seconds?.compute, answer.totalSeconds, answer.askedAt,
      ...classes.map((name) => probabilities.get(name)),
    ];
  });
  return csvText(columns, lines);
}
