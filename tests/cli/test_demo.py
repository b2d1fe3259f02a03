"""`mupscale demo` from beginning to end."""

from cli_runner import run


def test_demo(tmp_path, monkeypatch):
    from mupscale_cli.tasks.demo import training

    monkeypatch.setattr(training, "STEPS", 5)
    monkeypatch.setattr(training, "CONTINUED", 3)
    monkeypatch.chdir(tmp_path)
    result = run("demo")
    assert result.code == 0, result.err
    for line in ("$ mupscale widen mupscale-demo/tiny --factor 4", "$ mupscale verify mupscale-demo/tiny-x4"):
        assert line in result.out
    assert result.out.count("same function (") == 2
    assert (tmp_path / "mupscale-demo" / "tiny-x4" / "tokenizer.json").is_file()
