"""Repairs: each action by hand, and what must hold of any data, findings and policy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from foveal.auditing.clean import SAMPLE_KINDS, Cleaned, clean
from foveal.auditing.findings import Finding, FindingsTable
from foveal.auditing.repair_policy import REPAIRABLE, RepairPolicy, default_repair
from foveal.auditing.repair_rows import LOG_COLUMNS, PAIR_KINDS
from foveal.auditing.reviewed import read_corrections
from foveal.data.manifest import Manifest
from foveal.data.split import straddling
from foveal.errors import ArtifactError, DataError
from foveal.types import SPLITS

SPLIT = {"a": "train", "v": "val", "t": "test", "-": None}


def make(labels: Sequence[str], splits: str = "", **columns: Any) -> Manifest:
    columns.setdefault("path", [f"{number}.jpg" for number in range(len(labels))])
    if splits:
        columns["split"] = [SPLIT[letter] for letter in splits]
    return Manifest.build(Path("/data"), label=list(labels), **columns)


def found(manifest: Manifest, *findings: tuple[Any, ...] | Finding) -> FindingsTable:
    """Findings as (kind, row) or (kind, row, related row), with the repair that an audit would offer."""
    made = [
        each
        if isinstance(each, Finding)
        else Finding(each[0], "warning", default_repair(each[0]), row=each[1], related_row=(*each, None)[2])
        for each in findings
    ]
    return FindingsTable.of(made, manifest)


def done(manifest: Manifest, *findings: tuple[Any, ...] | Finding, **policy: Any) -> Cleaned:
    return clean(manifest, found(manifest, *findings), RepairPolicy(**policy))


def statuses(cleaned: Cleaned) -> str:
    return "".join("q" if status == "quarantined" else "." for status in cleaned.manifest.column("status"))


def letters(cleaned: Cleaned) -> str:
    return "".join((split or "-")[0].replace("t", "t") for split in _splits(cleaned.manifest))


def _splits(manifest: Manifest) -> list[str | None]:
    return [{"train": "a", "val": "v", "test": "t", None: "-"}[each] for each in manifest.column("split")]


def test_nothing_found_changes_nothing() -> None:
    manifest = make("xyxy", "aavt")
    cleaned = done(manifest)
    assert cleaned.manifest.table.equals(manifest.table)
    assert (cleaned.log, cleaned.notes, cleaned.num_left) == ([], (), {})


def test_samples_are_quarantined_with_their_first_reason_or_dropped() -> None:
    manifest = make("xxxyyy", status=["ok", "ok", "ok", "ok", "ok", "quarantined"], reason=[None] * 5 + ["is empty"])
    blank = Finding("blank", "warning", "quarantine", row=0, detail="There is one grey in it.")
    cleaned = done(
        manifest, ("tiny", 0), blank, ("tiny", 1), ("dark", 2), ("unreadable", 5), tiny="drop", blurred="drop"
    )
    assert statuses(cleaned) == "...q" or len(cleaned.manifest) == 4
    assert list(cleaned.manifest.column("path")) == ["2.jpg", "3.jpg", "4.jpg", "5.jpg"]
    assert cleaned.manifest.column("reason")[-1] == "is empty"
    assert cleaned.num_left == {"dark": 1}
    (first, second) = (dict(zip(LOG_COLUMNS, line, strict=True)) for line in cleaned.log)
    assert (first["path"], first["action"], first["before"], first["after"]) == (
        "0.jpg", "quarantine; drop", "status=ok", "no row",
    )  # fmt: skip
    assert first["reason"].startswith("blank: There is one grey in it.; tiny:")
    assert second["finding"] == "tiny"
    kept = done(manifest, blank)
    assert kept.manifest.column("reason")[0] == "blank: There is one grey in it."


def test_of_exact_duplicates_that_of_the_scarcer_split_stays() -> None:
    manifest = make("xxxxxxyyxxx", "aatvaaataaa", path=list("cbdafeghijk"))
    cleaned = done(manifest, *(("exact_duplicate", row, 0) for row in (1, 2, 3)), ("exact_duplicate", 5, 4))
    assert statuses(cleaned) == "qq.qq......"
    assert cleaned.manifest.column("reason")[0] == "duplicate of d"
    assert cleaned.manifest.column("reason")[4] == "duplicate of e"
    assert [line[3] for line in cleaned.log] == ["keep_one"] * 4


def test_of_other_copies_the_largest_then_the_shortest_name_stays() -> None:
    size = {"width": [90, 90, 45, 90], "height": [90, 90, 45, 90]}
    names = ["b (1).jpg", "b.jpg", "a.jpg", "b_flip.jpg"]
    manifest = make("xxxxyx", "attvaa", path=[*names, "k", "l"], **{k: [*v, 9, 9] for k, v in size.items()})
    pairs = [("near_duplicate", 0, 1), ("copy_by_name", 2, 1), ("exact_duplicate", 3, 1)]
    cleaned = done(manifest, *pairs, near_duplicate="keep_one", copy_by_name="keep_one", leak="none")
    assert statuses(cleaned) == "q.qq.."
    # As many exact copies of everything as a careless balancing makes: test must not get them all.
    many = make("x" * 60 + "y" * 60, "aaaaaaaavt" * 12)
    kept = done(many, *(("exact_duplicate", row, row - row % 10) for row in range(120) if row % 10))
    assert letters(kept) == "aaaaaaaavt" * 12
    assert list(kept.manifest.usable() % 10) == [0] * 12
    boxed = make("xxyy", xmin=[0, 0, 0, 0], ymin=[0, 0, 0, 0], xmax=[5, 9, 5, 5], ymax=[5, 9, 5, 5])
    assert statuses(done(boxed, ("near_duplicate", 0, 1), near_duplicate="keep_one")) == "q..."


def test_copies_under_two_labels_are_never_decided_by_a_rule() -> None:
    manifest = make(["cat", "cat", "dog", "cat", "dog", "cat"], "aaaaav")
    pairs = [("exact_duplicate", 1, 0), ("exact_duplicate", 2, 0), ("label_conflict", 2, 0)]
    assert statuses(done(manifest, *pairs)) == "qqq..."  # the copy that no conflict names as well
    left = done(manifest, *pairs, label_conflict="none")
    assert statuses(left) == ".q...."  # one of each label
    assert "labelled 'dog'" in done(manifest, *pairs).manifest.column("reason")[1]
    assert len(done(manifest, *pairs, label_conflict="drop").manifest) == 3


def test_clusters_get_one_group_and_reach_into_given_ones() -> None:
    manifest = make("xxxxxyyy", group=[None, None, "p1", None, "p1", None, "p2", "p2"])
    cleaned = done(manifest, ("near_duplicate", 0, 1), ("copy_by_name", 1, 2))
    assert list(cleaned.manifest.column("group")) == ["p1", "p1", "p1", None, "p1", None, "p2", "p2"]
    assert {line[1]: line[4:6] for line in cleaned.log} == {
        "0.jpg": ("group=", "group=p1"), "1.jpg": ("group=", "group=p1"),
    }  # fmt: skip
    joined = done(manifest, ("near_duplicate", 2, 6)).manifest.column("group")
    assert len({joined[row] for row in (2, 4, 6, 7)}) == 1
    alone = make("xxyy", path=["a", "a", "b", "c"], xmin=[0, 5] * 2, ymin=[0] * 4, xmax=[5, 9] * 2, ymax=[9] * 4)
    groups = done(alone, ("near_duplicate", 2, 3)).manifest.column("group")
    assert groups[0] is None  # boxes of one photograph need none
    assert groups[2] == groups[3] is not None


def test_a_chain_holds_also_by_what_is_quarantined() -> None:
    manifest = make("xxxyyx", "aatatt")
    # 1 has the bytes of 0 and goes; 2 is a copy of 1 alone.
    cleaned = done(manifest, ("exact_duplicate", 1, 0), ("near_duplicate", 1, 2), move_to="train")
    assert statuses(cleaned) == ".q...."
    assert letters(cleaned) == "aaaatt"
    groups = cleaned.manifest.column("group")
    assert groups[0] == groups[2] is not None


@pytest.mark.parametrize(
    ("to", "after"),
    [("train", "aaaaaavvtt"), ("test", "tttvaavvtt"), ("largest", "aaavaavvtt")],
)
def test_siblings_go_to_one_side(to: str, after: str) -> None:
    before = "aatvaavvtt"
    manifest = make("xxxxxyxyxy", before)
    pairs = [("leak", 2, 0), ("near_duplicate", 0, 1), ("leak", 3, 4)]
    if to != "train":
        pairs[2] = ("leak", 3, 6)  # both in val
    cleaned = done(manifest, *pairs, move_to=to)
    assert letters(cleaned) == after
    assert not straddling(cleaned.manifest).any()


def test_a_small_leak_goes_to_train_and_a_large_one_is_drawn_anew() -> None:
    few = make("xy" * 20, "a" * 28 + "v" * 6 + "t" * 6)
    cleaned = done(few, ("leak", 34, 0), ("leak", 28, 2))
    assert letters(cleaned) == "a" * 29 + "v" * 5 + "a" + "t" * 5
    assert "all of a cluster go to train" in cleaned.notes[0]
    # 40 originals of ten copies each, shared out file by file: every one lies in train.
    rng = np.random.default_rng(0)
    labels = np.repeat(["x", "y"], 200)
    splits = "".join(rng.choice(list("avt"), 400, p=[0.7, 0.15, 0.15]))
    many = make(labels.tolist(), splits)
    pairs = [("copy_by_name", row, row - row % 10) for row in range(400) if row % 10]
    cleaned = done(many, *pairs)
    for code, name in enumerate(SPLITS):
        for label in "xy":
            is_label = many.column("label") == label
            counts = [((each.split_codes() == code) & is_label).sum() for each in (many, cleaned.manifest)]
            assert counts[1] == pytest.approx(counts[0], abs=10), (name, label)
    assert not straddling(cleaned.manifest).any()
    assert "drawn anew" in cleaned.notes[0]
    kept = done(many, *pairs, copy_by_name="keep_one", leak="none").manifest
    assert list(kept.usable() % 10) == [0] * 40


def test_copies_on_the_other_sides_can_be_taken_out_in_place() -> None:
    manifest = make("xyxyxyyy", "aaavttav")
    pairs = [("leak", 4, 0), ("leak", 3, 1)]
    assert statuses(done(manifest, *pairs, leak="quarantine")) == "qq......"  # the copies in train, for a test to stay
    kept = done(manifest, *pairs, leak="quarantine", move_to="train")
    assert statuses(kept) == "...qq..."
    assert letters(kept) == "aaavttav"


def test_a_patient_in_two_splits_is_a_leak_too_and_folds_are_joined() -> None:
    manifest = make(
        "xyxyxyxy",
        "aaaaaatt",
        group=["p", None, "p", None, None, None, "p", None],
        fold=[0, 1, 1, 0, 1, 0] + [None] * 2,
    )
    cleaned = done(manifest, ("near_duplicate", 1, 3), move_to="train")
    assert letters(cleaned) == "aaaaaaat"
    folds = cleaned.manifest.column("fold")
    assert folds[0] == folds[2] == folds[6]
    assert folds[1] == folds[3]
    assert np.isnan(folds[7])
    assert {line[1] for line in cleaned.log if "fold" in line[4]} >= {"6.jpg"}


def test_class_names_alike_become_that_with_more_images() -> None:
    manifest = make(["Cat", "cat", "cat", "CAT ", "dog", "dog"])
    alike = [
        Finding("class_names_alike", "blocking", "merge_classes", label=one, related_label="cat")
        for one in ("Cat", "CAT ")
    ]
    cleaned = done(manifest, *alike)
    assert cleaned.manifest.class_names == ("cat", "dog")
    assert list(cleaned.manifest.column("label")) == ["cat"] * 4 + ["dog"] * 2
    assert cleaned.notes == ("Classes that are no more: 'Cat', 'CAT '.",)
    assert done(manifest, *alike, class_names_alike="none").manifest.table.equals(manifest.table)


def test_what_the_audit_leaves_to_a_person_is_left() -> None:
    manifest = make("xxyy")
    unsure = Finding("copy_by_name", "note", "none", row=0, related_row=2)
    about_class = Finding("fewer_originals", "warning", label="x")
    cleaned = done(manifest, unsure, about_class)
    assert cleaned.log == []
    assert cleaned.num_left == {"copy_by_name": 1, "fewer_originals": 1}


def test_a_class_never_loses_its_last_image_to_train_on() -> None:
    manifest = make("xxyyyy", "ataatv", width=[5, 6, 5, 5, 5, 5], height=[5] * 6)
    with pytest.raises(DataError, match="would be left without an image to train on") as caught:
        done(manifest, ("near_duplicate", 1, 0), near_duplicate="keep_one")
    assert caught.value.problems == ("class 'x': of 1 images in train 1 quarantined or dropped",)
    assert statuses(done(manifest, ("exact_duplicate", 1, 0))) == ".q...."
    with pytest.raises(DataError) as caught:
        done(manifest, ("leak", 1, 0), move_to="test")
    assert caught.value.problems == ("class 'x': of 1 images in train 1 moved to test",)
    assert letters(done(manifest, ("leak", 1, 0))) == "aaaatv"
    one_each = make("xyx", "aat")
    with pytest.raises(DataError, match="leave a split without an image") as caught:
        done(one_each, ("leak", 2, 0), move_to="train")
    assert caught.value.problems == ("test: 1 images before, 0 after",)


def test_a_class_that_is_all_broken_is_told_and_stays() -> None:
    manifest = make("xxyy", "aaav")
    cleaned = done(manifest, ("blank", 0), ("blank", 1))
    assert cleaned.manifest.class_names == ("x", "y")
    assert "Classes without a usable image now: 'x'." in cleaned.notes[0]
    assert "data.exclude_classes" in cleaned.notes[0]


def test_findings_of_another_manifest_are_refused() -> None:
    manifest = make("xxyy")
    other = make("xxyy", path=list("abcd"))
    with pytest.raises(ArtifactError, match="findings are of another manifest"):
        clean(manifest, found(other, ("blank", 0)), RepairPolicy())
    twice = make("xx", sample_id=["a", "a"])
    with pytest.raises(DataError, match="several rows of one sample_id"):
        done(twice)


# Reviewed labels


def reviewed(tmp_path: Path, text: str, manifest: Manifest, findings: FindingsTable, **policy: Any) -> Cleaned:
    file = tmp_path / "reviewed.csv"
    file.write_bytes(text.encode("utf-8"))
    chosen = RepairPolicy(**policy)
    return clean(manifest, findings, chosen, read_corrections(file, manifest, findings, chosen.new_classes))


def test_labels_change_by_a_reviewed_table_alone(tmp_path: Path) -> None:
    manifest = make(["cat", "dog", "dog", "=SUM(1)", "cat"], path=["a\nb.jpg", "=1.jpg", "c.jpg", "d.jpg", "ü.jpg"])
    findings = found(manifest, ("wrong_label", 0), ("wrong_label", 1), ("wrong_label", 2))
    ids = manifest.column("sample_id")
    lines = [
        "\ufeffsample_id;path;label;corrected_label",
        f'{ids[0]};"a\nb.jpg";cat;dog',
        ";'=1.jpg;dog;'=SUM(1)",
        ";u\u0308.jpg;cat;dog ",
        f"{ids[2]};;dog;",
    ]
    text = "\r\n".join(lines)
    cleaned = reviewed(tmp_path, text, manifest, findings, wrong_label="quarantine")
    assert list(cleaned.manifest.column("label")) == ["dog", "=SUM(1)", "dog", "=SUM(1)", "dog"]
    assert cleaned.manifest.class_names == ("=SUM(1)", "dog")
    assert statuses(cleaned) == "..q.."  # what a person has stated is not doubted
    by_path = {line[1]: dict(zip(LOG_COLUMNS, line, strict=True)) for line in cleaned.log}
    assert by_path["a\nb.jpg"]["before"] == "label=cat"
    assert by_path["a\nb.jpg"]["after"] == "label=dog"
    assert by_path["a\nb.jpg"]["reason"] == "line 2 of reviewed.csv"
    assert by_path["=1.jpg"]["reason"] == "line 4 of reviewed.csv"


def test_the_findings_table_itself_can_be_edited(tmp_path: Path) -> None:
    manifest = make(["cat", "dog", "dog", "cat"], path=["=a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    findings = found(
        manifest,
        ("wrong_label", 0), ("tiny", 0), ("label_conflict", 1, 0), ("label_conflict", 2, 3),
        Finding("class_imbalance", "note", label="cat"),
    )  # fmt: skip
    findings.write(tmp_path)
    lines = (tmp_path / "findings.csv").read_text(encoding="utf-8").splitlines()
    place = next(at for at, line in enumerate(lines) if line.startswith("wrong_label"))
    lines[place] = lines[place].replace(",cat,", ",dog,", 1)
    cleaned = reviewed(tmp_path, "\n".join(lines), manifest, findings)
    assert list(cleaned.manifest.column("label")) == ["dog", "dog", "dog", "cat"]
    # The conflict of 0 and 1 is no more, that of 2 and 3 is.
    assert statuses(cleaned) == "..qq"
    again = clean(
        cleaned.manifest,
        findings,
        RepairPolicy(),
        read_corrections(tmp_path / "reviewed.csv", cleaned.manifest, findings),
    )
    assert again.manifest.table.equals(cleaned.manifest.table)
    assert again.log == []


def test_faults_of_a_reviewed_table_are_told_all_at_once(tmp_path: Path) -> None:
    boxes = {"xmin": [0, 5, 0], "ymin": [0, 5, 0], "xmax": [5, 9, 5], "ymax": [5, 9, 5]}
    manifest = make(["cat", "dog", "dog"], path=["a.jpg", "a.jpg", "b.jpg"], **boxes)
    ids = manifest.column("sample_id")
    rows = [
        "sample_id,path,label", "nobody,,cat", f"{ids[0]},,Caat", f"{ids[0]},,owl", ",a.jpg,dog", f"{ids[2]},,cat",
        f"{ids[2]},,dog", f"{ids[1]},b.jpg,dog", "1.2E+15,b.jpg,cat",
    ]  # fmt: skip
    with pytest.raises(DataError, match="6 faults") as caught:
        reviewed(tmp_path, "\n".join(rows), manifest, found(manifest))
    problems = "\n".join(caught.value.problems)
    for words in (
        "line 2: no sample 'nobody'", "line 3: no class 'Caat'; did you mean 'cat'?", "line 4: no class 'owl'",
        "line 5: 'a.jpg' has 2 samples", "line 7: 'dog' here, and 'cat' in line 6", "line 8: the sample_id",
    ):  # fmt: skip
        assert words in problems
    assert "new_classes" in caught.value.fix
    new = reviewed(tmp_path, f"sample_id,label\n{ids[0]},owl\n", manifest, found(manifest), new_classes=["owl"])
    assert new.manifest.class_names == ("dog", "owl")
    with pytest.raises(DataError, match="no table of reviewed labels") as caught:
        reviewed(tmp_path, "name,class\na,b\n", manifest, found(manifest))
    assert len(caught.value.problems) == 2


# Whatever the data


@st.composite
def audits(draw: st.DrawFn) -> tuple[Manifest, list[Finding]]:
    """Rows of a few classes, split, grouped, boxed and found fault with at random, by findings of all kinds."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = int(rng.integers(30, 90))
    classes = np.array(["Cat", "cat", "dog", "=bird", "a\nb"])
    labels = classes[rng.integers(0, 5, n)].tolist()
    shared = rng.random(n) < 0.1
    paths = [f"{'p' * int(rng.integers(1, 9))}/{row if not shared[row] else 'box'}.jpg" for row in range(n)]
    status = np.where(rng.random(n) < 0.06, "quarantined", "ok").tolist()
    columns: dict[str, Any] = {
        "path": paths,
        "status": status,
        "reason": ["was empty" if each != "ok" else None for each in status],
        "xmin": list(range(n)), "ymin": [0] * n, "xmax": [row + int(rng.integers(1, 9)) for row in range(n)],
        "ymax": [9] * n,
        "group": [f"g{k}" if p < 0.25 else None for k, p in zip(rng.integers(0, 8, n), rng.random(n), strict=True)],
        "sha256": [f"s{rng.integers(0, 30)}" if rng.random() < 0.2 else f"t{row}" for row in range(n)],
    }  # fmt: skip
    if rng.random() < 0.9:
        columns["split"] = rng.choice([*SPLITS, None], n, p=[0.6, 0.17, 0.17, 0.06]).tolist()
    if rng.random() < 0.4:
        columns["fold"] = [
            int(k) if p < 0.8 else None for k, p in zip(rng.integers(0, 3, n), rng.random(n), strict=True)
        ]
    manifest = make(labels, **columns)
    findings = [
        Finding(str(kind), "warning", default_repair(str(kind)), row=int(row), detail=f"d{int(rng.integers(9))}")
        for kind, row in zip(rng.choice(SAMPLE_KINDS, 12), rng.integers(0, n, 12), strict=True)
    ]
    for kind in PAIR_KINDS:
        for _ in range(int(rng.integers(0, 9))):
            one, other = rng.choice(n, 2, replace=False).tolist()
            if kind != "label_conflict" or labels[one] != labels[other]:
                findings.append(Finding(kind, "warning", default_repair(kind), row=one, related_row=other))
    if rng.random() < 0.5:
        findings.append(Finding("class_names_alike", "blocking", "merge_classes", label="Cat", related_label="cat"))
    findings.append(Finding("class_imbalance", "note", label="dog", value=3.0))
    return manifest, findings


@st.composite
def policies(draw: st.DrawFn) -> RepairPolicy:
    chosen = {
        name: draw(st.sampled_from(get_args(field.annotation)))
        for name, field in RepairPolicy.model_fields.items()
        if name != "new_classes"
    }
    if chosen["leak"] == "quarantine" and chosen["move_to"] == "balance":
        chosen["move_to"] = "auto"
    return RepairPolicy(**chosen)


COLUMNS = ("label", "split", "fold", "group", "status")


def rows_of(manifest: Manifest) -> dict[str, dict[str, Any]]:
    return {row["sample_id"]: row for row in manifest.table.to_pylist()}


def is_cut(manifest: Manifest, findings: list[Finding], source: Manifest, policy: RepairPolicy) -> bool:
    """Whether anything that shows the same lies in several splits, by another library's components."""
    place = {identifier: at for at, identifier in enumerate(source.column("sample_id"))}
    kept = np.array([place[identifier] for identifier in manifest.column("sample_id")], dtype=np.int64)
    usable, ends = manifest.is_usable(), []
    for name in ("group", "path", "sha256"):
        codes = np.where(usable, manifest.codes(name), -1)
        for code in np.unique(codes[codes >= 0]):
            same = kept[codes == code]
            ends += list(zip(same[:-1].tolist(), same[1:].tolist(), strict=True))
    linking = {kind for kind in PAIR_KINDS if policy.action(kind) != "none"}
    ends += [(each.row, each.related_row) for each in findings if each.finding in linking]
    left, right = np.array(ends, dtype=np.int64).reshape(-1, 2).T
    graph = coo_matrix((np.ones(len(left)), (left, right)), shape=(len(source), len(source)))
    component = connected_components(graph, directed=False)[1][kept]
    splits: dict[int, set[int]] = {}
    for number, code, used in zip(component, manifest.split_codes(), usable, strict=True):
        if used and code >= 0:
            splits.setdefault(int(number), set()).add(int(code))
    return any(len(each) > 1 for each in splits.values())


def check(manifest: Manifest, findings: list[Finding], policy: RepairPolicy, seed: int) -> bool:
    table = FindingsTable.of(findings, manifest)
    try:
        cleaned = clean(manifest, table, policy)
    except DataError:
        return False
    before, after = rows_of(manifest), rows_of(cleaned.manifest)
    # Nothing is lost that the log does not say was dropped, and nothing else is touched.
    log = {line[0]: dict(zip(LOG_COLUMNS, line, strict=True)) for line in cleaned.log}
    assert len(log) == len(cleaned.log)
    dropped = {identifier for identifier, line in log.items() if line["after"] == "no row"}
    assert list(after) == [identifier for identifier in before if identifier not in dropped]
    changed = {each for each in after if any(before[each][name] != after[each][name] for name in COLUMNS)}
    assert set(log) == changed | dropped
    for identifier in changed:
        for name in COLUMNS:
            for side, values in (("before", before), ("after", after)):
                value = values[identifier][name]
                text = f"{name}={'' if value is None else value}"
                assert (text in log[identifier][side]) == (before[identifier][name] != after[identifier][name])
        assert log[identifier]["action"]
        assert log[identifier]["reason"]
    for identifier, row in after.items():
        assert all(row[name] == before[identifier][name] for name in set(row) - {*COLUMNS, "reason"})
        if before[identifier]["status"] == "quarantined":
            assert row["reason"] == before[identifier]["reason"]
            assert row["status"] == "quarantined"
        assert (row["status"] == "quarantined") == (row["reason"] is not None)
    if policy.leak != "none":
        assert not is_cut(cleaned.manifest, findings, manifest, policy)
    # Twice is once.
    again = clean(cleaned.manifest, table, policy)
    assert again.manifest.table.equals(cleaned.manifest.table)
    assert again.manifest.class_names == cleaned.manifest.class_names
    assert again.log == []
    # The order of rows and findings decides nothing.
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(manifest))
    places = rng.permutation(len(table))
    other = FindingsTable({name: [values[at] for at in places] for name, values in table.columns.items()})
    turned = clean(manifest.take(order), other, policy)
    assert rows_of(turned.manifest) == after
    assert turned.log == cleaned.log
    return True


@pytest.mark.parametrize(("policy", "num_examples"), [(st.just(RepairPolicy()), 40), (policies(), 80)])
def test_what_holds_of_any_data(policy: st.SearchStrategy[RepairPolicy], num_examples: int) -> None:
    """Nothing lost, every change told once, no leak left, twice is once, and the order decides nothing."""
    repaired: list[bool] = []

    @settings(max_examples=num_examples, deadline=None)
    @given(audits(), policy, st.integers(0, 99))
    def holds(audit: tuple[Manifest, list[Finding]], chosen: RepairPolicy, seed: int) -> None:
        repaired.append(check(*audit, chosen, seed))

    holds()
    assert np.mean(repaired) > 0.5  # the others were refused, as they must be


def test_every_kind_that_has_a_repair_is_made_up_here() -> None:
    assert set(SAMPLE_KINDS) | set(PAIR_KINDS) | {"class_names_alike"} == set(REPAIRABLE)
