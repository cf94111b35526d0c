"""The command bird-cache, in processes of its own, as a shell starts it."""

import json
import subprocess
import sys

import pytest
from helpers import cachekit
from helpers.cachekit import ROWS

from bird_cache.command import main


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    where = tmp_path_factory.mktemp("command") / "cache"
    cachekit.write(where)
    return where


def asked(capsys, *words):
    assert main([str(word) for word in words]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_cache_is_looked_into_and_made_new_ones_of(cache, tmp_path, capsys):
    assert asked(capsys, "info", cache)["rows"] == ROWS
    assert asked(capsys, "verify", cache)["findings"] == []
    (tmp_path / "gone.txt").write_text("sample-3\nsample-4\n")
    made = asked(capsys, "drop", cache, tmp_path / "less", "--ids", tmp_path / "gone.txt")
    assert (made["rows_before"], made["rows"], sum(made["changed"].values())) == (ROWS, ROWS - 2, 2)
    chosen = ("--split", "train", "--split", "meta", "--class", "a", "--class", "b", "--group", "g")
    assert asked(capsys, "subset", cache, tmp_path / "some", *chosen)["rows"] == 200
    assert asked(capsys, "subset", cache, tmp_path / "two", "--id", "sample-3", "--id", "sample-4")["rows"] == 2
    assert asked(capsys, "append", tmp_path / "less", tmp_path / "two", tmp_path / "whole")["rows"] == ROWS
    assert asked(capsys, "to-parquet", cache, tmp_path / "c.parquet", "--layer", "penultimate")["rows"] == ROWS
    found = asked(capsys, "search", cache, "--id", "sample-9", "--neighbours", "3")
    assert len(found["neighbours"]["sample-9"]) == 3
    found = asked(capsys, "search", cache, "--near-duplicates", ".999")
    assert [each["rows"] for each in found["splits"]] == [198, 199, 199]


def test_what_goes_wrong_is_one_line_and_an_exit_code(cache, tmp_path, capsys):
    assert main(["info", str(tmp_path / "none")]) == 2
    assert main(["drop", str(cache), str(tmp_path / "x"), "--id", "nobody"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert [line.split(":")[0] for line in said.err.splitlines()] == ["NotACacheError", "RequestError"]
    with pytest.raises(SystemExit, match="2"):
        main(["search", str(cache)])


def test_a_file_of_ids_that_is_none_and_a_target_that_is_taken(cache, tmp_path, capsys):
    (tmp_path / "ids.csv").write_text("name\nsample-3\n")
    assert main(["drop", str(cache), str(tmp_path / "x"), "--ids", str(tmp_path / "none.json")]) == 2
    assert "none.json: found no such file; wanted .txt (one id a line) or .csv" in capsys.readouterr().err
    assert main(["drop", str(cache), str(tmp_path / "x"), "--ids", str(tmp_path / "ids.csv")]) == 2
    said = capsys.readouterr().err
    assert "name that column id" in said
    assert "--id-column" not in said
    asked(capsys, "drop", cache, tmp_path / "d", "--id", "sample-3")
    assert main(["drop", str(cache), str(tmp_path / "d"), "--id", "sample-4"]) == 3
    said = capsys.readouterr().err
    assert "d: found another cache (other generation.identity); wanted a new folder" in said
    assert "give another folder" in said
    assert "--out" not in said


def test_an_interrupt_and_a_refusal_of_the_disk_are_one_line(cache, monkeypatch, capsys):
    def stopped(options):
        raise KeyboardInterrupt

    def refused(options):
        raise PermissionError(13, "Permission denied", "some/file")

    for run, code, said in ((stopped, 130, "to resume"), (refused, 1, "some/file: found Permission denied; ")):
        monkeypatch.setattr("bird_cache.command._info", run)
        assert main(["info", str(cache)]) == code
        told = capsys.readouterr().err
        assert said in told
        assert told.count("\n") == 1


def test_damage_has_exit_code_3(tmp_path, capsys):
    cachekit.write(tmp_path / "c")
    shard = tmp_path / "c/penultimate/c/0/0/0"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    assert main(["verify", str(tmp_path / "c")]) == 3
    assert json.loads(capsys.readouterr().out)["findings"]


def test_it_starts_without_torch_or_zarr(cache):
    code = (
        f"from bird_cache.command import main; main(['info', {str(cache)!r}]); import sys; "
        "assert not {'torch', 'zarr', 'pandas', 'typer', 'rich'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
