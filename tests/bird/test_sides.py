"""A data set that grew: what was on one side of its splits stays there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from bird.datasets import open_dataset
from bird.datasets.base import SampleTable, prepare


def grown(folder: Path, rows: int, columns: str = "path,label,group", extra: str = "") -> SampleTable:
    """A table of the first `rows` of a sequence of files, which are never decoded. `extra` is formatted with the row."""
    folder.mkdir(exist_ok=True)
    lines = [columns]
    for row in range(rows):
        (folder / f"{row}.png").write_bytes(f"image {row}".encode())
        lines.append(f"{row}.png,{row % 2},{row // 2 % 2}{extra.format(row=row, subject=row // 3, split=split(row))}")
    (folder / "samples.csv").write_text("\n".join(lines))
    return prepare(open_dataset("table", folder))


def split(row: int) -> str:
    return "test" if row % 5 == 0 else "train"


def sides_of(table: SampleTable) -> dict[str, str]:
    return dict(zip(table.digests.tolist(), table.splits.tolist(), strict=True))


def moved(before: SampleTable, after: SampleTable) -> int:
    there, here = sides_of(before), sides_of(after)
    return sum(there[digest] != here[digest] for digest in there.keys() & here.keys())


def counts(table: SampleTable) -> Counter[tuple[str, int, int]]:
    return Counter(zip(table.splits.tolist(), table.labels.tolist(), table.groups.tolist(), strict=True))


def test_rows_keep_their_side_when_a_data_set_grows(tmp_path: Path) -> None:
    before = grown(tmp_path, 750)
    drawn = grown(tmp_path, 900)
    assert moved(before, drawn) > 10, "or this test shows nothing"
    after = prepare(open_dataset("table", tmp_path), sides=sides_of(before))
    assert moved(before, after) == 0
    assert after.notes["kept_on_their_side"] == 750
    assert counts(after) == counts(drawn)
    assert {split for split, *_ in counts(after)} == {"train", "meta", "test"}


def test_rows_keep_their_side_when_a_data_set_shrinks(tmp_path: Path) -> None:
    before = grown(tmp_path, 900)
    grown(tmp_path, 700)
    after = prepare(open_dataset("table", tmp_path), sides=sides_of(before))
    assert moved(before, after) == 0
    assert after.notes["kept_on_their_side"] == 700


def test_what_the_data_set_says_counts_more(tmp_path: Path) -> None:
    """A table with splits of its own: only meta is drawn, out of train."""
    given = {"columns": "path,label,group,split", "extra": ",{split}"}
    before = grown(tmp_path, 300, **given)
    wrong = dict.fromkeys(sides_of(before), "test")
    after = prepare(open_dataset("table", tmp_path), sides=wrong)
    assert sides_of(after) == sides_of(before)
    after = grown(tmp_path, 400, **given)
    assert moved(before, after) > 0
    assert moved(before, prepare(open_dataset("table", tmp_path), sides=sides_of(before))) == 0


def test_new_images_of_a_subject_follow_it(tmp_path: Path) -> None:
    given = {"columns": "path,label,group,subject", "extra": ",s{subject}"}
    before = grown(tmp_path, 400, **given)  # the last subject has one image of its three
    grown(tmp_path, 500, **given)
    data = open_dataset("table", tmp_path)
    after = prepare(data, sides=sides_of(before))
    assert moved(before, after) == 0
    assert data.subjects is not None
    sides: dict[str, set[str]] = {}
    for id, side in zip(after.ids.tolist(), after.splits.tolist(), strict=True):
        sides.setdefault(data.subjects[id], set()).add(side)
    assert all(len(each) == 1 for each in sides.values())


def test_equal_test_cells_stay_equal(tmp_path: Path) -> None:
    def write(per_cell: int) -> None:
        for age in (5, 25, 70):
            for race in range(4):
                for number in range(per_cell):
                    name = f"{age}_{number % 2}_{race}_2017{number:013d}.jpg"
                    (tmp_path / name).write_bytes(f"{age} {race} {number}".encode())

    write(110)
    before = prepare(open_dataset("utkface", tmp_path, preset="mfd"), meta_at_least=1)
    write(200)
    drawn = prepare(open_dataset("utkface", tmp_path, preset="mfd"), meta_at_least=1)
    after = prepare(open_dataset("utkface", tmp_path, preset="mfd"), meta_at_least=1, sides=sides_of(before))
    assert moved(before, drawn) > 100
    assert moved(before, after) == 0
    assert {count for (split, *_), count in counts(after).items() if split == "test"} == {100}
    assert counts(after) == counts(drawn)
