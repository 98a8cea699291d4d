// Work that waits its turn: a few pieces at a time, with a pause that holds for all and a way to stop.

function stopped() {
  return new DOMException("stopped", "AbortError");
}

/** Runs `work(job, signal)` for each job; `work` deals with its own failures. */
export class Queue {
  #work;
  #atOnce;
  #onChange;
  #waiting = [];
  #running = new Map();
  #clearAt = 0;
  #gate = null;
  numDone = 0;

  constructor(work, atOnce, onChange) {
    this.#work = work;
    this.#atOnce = atOnce;
    this.#onChange = onChange;
  }

  get numLeft() {
    return this.#waiting.length + this.#running.size;
  }

  add(jobs) {
    if (this.numLeft === 0) this.numDone = 0;
    this.#waiting.push(...jobs);
    this.#onChange();
    this.#start();
  }

  /** Nothing new is asked for that long; with many waiting, all would only be told the same. */
  pauseFor(seconds) {
    this.#clearAt = Math.max(this.#clearAt, performance.now() + 1000 * seconds);
  }

  /** Nothing is asked until `open` is called. */
  close() {
    if (this.#gate) return;
    let open;
    const opened = new Promise((resolve) => { open = resolve; });
    this.#gate = { opened, open };
  }

  open() {
    this.#gate?.open();
    this.#gate = null;
  }

  /** Comes back when asking is allowed; fails as an aborted fetch does when the job is stopped meanwhile. */
  async clearance(signal) {
    for (;;) {
      if (signal.aborted) throw stopped();
      const wait = this.#clearAt - performance.now();
      if (!this.#gate && wait <= 0) return;
      const turn = this.#gate ? this.#gate.opened : new Promise((resolve) => { setTimeout(resolve, wait); });
      let onAbort;
      const aborted = new Promise((resolve) => { onAbort = resolve; signal.addEventListener("abort", resolve, { once: true }); });
      await Promise.race([turn, aborted]);
      signal.removeEventListener("abort", onAbort);
    }
  }

  /** Stop what `matches`, or all; gives the jobs that had not begun. */
  stop(matches = () => true) {
    const left = this.#waiting.filter(matches);
    this.#waiting = this.#waiting.filter((job) => !matches(job));
    for (const [job, controller] of this.#running) if (matches(job)) controller.abort();
    this.#onChange();
    return left;
  }

  #start() {
    while (this.#waiting.length && this.#running.size < this.#atOnce) {
      const job = this.#waiting.shift();
      const controller = new AbortController();
      this.#running.set(job, controller);
      this.#work(job, controller.signal).finally(() => {
        this.#running.delete(job);
        if (!controller.signal.aborted) this.numDone += 1;
        this.#onChange();
        this.#start();
      });
    }
  }
}
