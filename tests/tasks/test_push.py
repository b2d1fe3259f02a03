"""Push to a Hub with the real client: files, names, commits and failures."""

import hashlib
import json
import shlex

import pytest
import torch
from huggingface_hub import HfApi, constants, utils

from cli_runner import run
from helpers import save_mlp, save_model
from hub_server import TOKEN
from mupscale_cli.checkpoints.hub.ids import HubId
from mupscale_cli.checkpoints.hub.publishing import Repository, create_repository
from mupscale_cli.optimizers.finding import state_names
from mupscale_cli.tasks.card import BEGIN, END
from mupscale_cli.tasks.push import prepare_push

FUNCTION = {
    "agrees": True,
    "dtype": "float64",
    "device": "cpu",
    "inputs": "2 sequences of 16 random tokens",
    "tolerance": 1e-13,
    "tolerance_reason": "8 u L sqrt(n)",
    "module_by_module": False,
    "worst_module": None,
    "modules_compared": 20,
    "comparisons": [{"what": "logits", "max_abs": 4e-15, "max_rel": 1.3e-15}],
    "first_difference": None,
    "rounding": None,
    "rounded_tensors": 0,
    "keeps_function": True,
    "unperturbed": None,
    "missing": [],
    "unused": [],
}
VERIFIED = {
    "agrees": True,
    "function": FUNCTION,
    "training": None,
    "weights": None,
    "config": None,
    "files": None,
    "skipped": {},
}
SOURCE_CARD = (
    b"---\nlicense: other\nlicense_name: tiny-licence\nlicense_link: LICENSE\npipeline_tag: text-generation\n---\n"
)


def note(folder, **changes):
    """Change entries of a directory's record."""
    file = folder / "mupscale.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}, indent=2))


@pytest.fixture
def wide(hub, saved, tmp_path):
    """A directory widened from a model of the Hub, with a record of a verification."""
    files = {file.name: file.read_bytes() for file in saved("Llama-tied").iterdir()}
    hub.add("org/tiny", {**files, "tokenizer.json": b"{}", "README.md": SOURCE_CARD})
    result = run("widen", "org/tiny", "-f", "2", "--no-verify", "-o", "wide", "--max-shard-size", "200KB")
    assert result.code == 0, result.err
    note(tmp_path / "wide", verification=VERIFIED)
    hub.forget()
    return tmp_path / "wide"


SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
PUSHED = {
    ".gitattributes",
    "README.md",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "mupscale.json",
    "model.safetensors.index.json",
    *SHARDS,
}


def test_a_new_repository_is_filled_in_one_commit(hub, wide, tmp_path):
    result = run("push", "wide", "me/wide", "--private", "--commit-message", "wider")
    assert result.code == 0, result.err
    assert f"published: {hub.url}/me/wide" in result.out
    assert "warning" not in result.err
    repo = hub.repos["me/wide"]
    assert repo.private
    assert repo.messages == ["", "wider"]
    files = hub.files("me/wide")
    assert set(files) == PUSHED
    assert all(files[name] == (wide / name).read_bytes() for name in PUSHED - {".gitattributes", "README.md"})
    card = files["README.md"].decode()
    for text in (
        "base_model: org/tiny",
        "base_model_relation: finetune",
        "license: other",
        "tiny-licence",
        "- mupscale",
        "- model-growth",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "1.3e-15",
        "| `embed` | 48 | x2 | 96 |",
        "23,856 before, 89,184 after",
    ):
        assert text in card, card
    for secret in (str(tmp_path), TOKEN, hub.url):
        assert secret not in card


def test_the_command_in_the_card_reproduces_the_files(hub, wide):
    assert run("push", "wide", "me/wide").code == 0
    card = hub.files("me/wide")["README.md"].decode()
    command = card.partition("```sh\nmupscale ")[2].partition("\n```")[0].split()
    assert run(*command[:-1], "again", "--no-verify", "--max-shard-size", "200KB").code == 0
    for name in (*SHARDS, "config.json"):
        assert (wide.parent / "again" / name).read_bytes() == (wide / name).read_bytes()


def test_unchanged_files_are_not_sent_again(hub, wide):
    assert run("push", "wide", "me/wide").code == 0
    before = hub.repos["me/wide"].refs["main"]
    hub.forget()
    again = run("push", "wide", "me/wide")
    assert again.code == 0, again.err
    assert "nothing to update" in again.out
    assert not hub.asked("PUT|POST .*/commit/")
    assert hub.repos["me/wide"].refs["main"] == before
    note(wide, verification={**VERIFIED, "function": {**FUNCTION, "dtype": "float32"}})
    changed = json.loads(run("push", "wide", "me/wide", "--json").out)
    assert not hub.asked("PUT")
    assert [file["path"] for file in changed["files"] if file["status"] == "changed"] == ["README.md", "mupscale.json"]
    assert changed["commit"] == hub.repos["me/wide"].refs["main"]


def test_a_dry_run_shows_files_and_card_and_sends_nothing(hub, wide):
    first = run("push", "wide", "me/wide", "--dry-run")
    assert run("push", "wide", "me/wide", "--dry-run", "--quiet").out == first.out  # what was asked for
    assert first.code == 0, first.err
    assert BEGIN in first.out
    assert "me/wide" not in hub.repos
    assert not hub.asked("POST|PUT")
    assert run("push", "wide", "me/wide").code == 0
    note(wide, verification=None)
    (wide / "tokenizer.json").write_text('{"new": 1}')
    document = json.loads(run("push", "wide", "me/wide", "--dry-run", "--json").out)
    found = {file["path"]: file["status"] for file in document["files"]}
    changed = {"README.md", "mupscale.json", "tokenizer.json"}
    assert found == {name: "changed" if name in changed else "unchanged" for name in PUSHED - {".gitattributes"}}
    assert document["commit"] is None
    assert "**Not verified**" in document["card"]
    assert "not verified" in document["warnings"][0]


def test_an_interrupted_push_continues(hub, wide):
    first, second = (hashlib.sha256((wide / shard).read_bytes()).hexdigest() for shard in SHARDS)
    hub.fail(f"PUT /lfs/{second}", 503)
    broken = run("push", "wide", "me/wide")
    assert broken.code == 2
    assert "HTTP 503" in broken.err
    assert "hint: try again" in broken.err
    assert "Traceback" not in broken.err
    assert TOKEN not in broken.err
    assert set(hub.files("me/wide")) == {".gitattributes"}, "half of a model was published"
    assert len(hub.asked(f"PUT /lfs/{second}")) > 1, "the client did not try again"
    hub.failures.clear()
    hub.forget()
    assert run("push", "wide", "me/wide").code == 0
    assert hub.asked("PUT") == [f"PUT /lfs/{second}"]
    assert first in hub.large
    assert set(hub.files("me/wide")) == PUSHED


def test_ctrl_c_during_a_push_names_the_command_that_continues(hub, wide, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(HfApi, "create_commit", interrupt)
    result = run("push", "wide", "me/wide", "--private")
    assert result.code == 130
    assert "files already sent are kept, and `mupscale push wide me/wide --private` continues" in result.err


def test_offline_mode_publishes_nothing(hub, wide, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    utils.close_session()
    result = run("push", "wide", "me/wide")
    assert result.code == 2
    assert "cannot push to `me/wide`: offline mode is on" in result.err
    planned = run("push", "wide", "me/wide", "--dry-run", "--json")
    assert planned.code == 0
    assert "offline mode is on" in planned.err
    assert {file["status"] for file in json.loads(planned.out)["files"]} == {"unknown"}


def test_pull_requests_and_branches(hub, wide):
    assert run("push", "wide", "me/wide", "--revision", "wider").code == 0
    assert set(hub.files("me/wide", "wider")) == PUSHED
    assert set(hub.files("me/wide")) == {".gitattributes"}
    proposed = run("push", "wide", "me/wide", "--create-pr")
    assert proposed.code == 0, proposed.err
    assert f"pull request 1: {hub.url}/me/wide/discussions/1" in proposed.out
    assert set(hub.files("me/wide", "refs/pr/1")) == PUSHED
    assert set(hub.files("me/wide")) == {".gitattributes"}
    (wide / "tokenizer.json").write_text("[]")
    assert run("push", "wide", "me/wide@refs/pr/1").code == 0
    assert hub.files("me/wide", "refs/pr/1")["tokenizer.json"] == b"[]"
    refused = run("push", "wide", "me/wide", "--create-pr", "--revision", "wider")
    assert refused.code == 2
    assert "`--create-pr`" in refused.err


def test_the_text_of_an_existing_card_is_kept(hub, wide):
    theirs = "---\nlicense: mit\ntags:\n- mine\nbase_model: other/base\n---\n# Mine\n\nText.\n"
    hub.add("me/wide", {"README.md": theirs.encode()})
    assert run("push", "wide", "me/wide", "--private").code == 0
    card = hub.files("me/wide")["README.md"].decode()
    assert "license: mit" in card
    assert "tiny-licence" not in card
    assert "base_model: other/base" in card
    assert "base_model_relation" not in card
    assert card.index("- mine") < card.index("- mupscale")
    assert "# Mine\n\nText.\n\n" + BEGIN in card
    # The text around the section stays; the section is replaced.
    edited = card.replace(END, END + "\n\nAfter.\n").replace("1.3e-15", "9.9e-99")
    repo = hub.repos["me/wide"]
    hub.add("me/wide", {**hub.files("me/wide"), "README.md": edited.encode()})
    assert run("push", "wide", "me/wide").code == 0
    card = hub.files("me/wide")["README.md"].decode()
    assert "After." in card
    assert "9.9e-99" not in card
    assert card.count(BEGIN) == 1
    assert len(repo.messages) == 4
    # A card beside the weights is the one that its author wants.
    (wide / "README.md").write_text("# Local\n")
    assert run("push", "wide", "me/wide").code == 0
    assert "# Local" in hub.files("me/wide")["README.md"].decode()
    assert (wide / "README.md").read_text() == "# Local\n"
    (wide / "README.md").write_text("---\n[1\n---\n")
    broken = run("push", "wide", "me/wide")
    assert broken.code == 2
    assert "the existing model card has invalid metadata" in broken.err


def test_weights_of_an_earlier_push_are_deleted(hub, wide):
    hub.add("me/wide", {"model.safetensors": b"old", "model-00001-of-00009.safetensors": b"old", "other.txt": b"x"})
    document = json.loads(run("push", "wide", "me/wide", "--dry-run", "--json").out)
    found = {file["path"]: file["status"] for file in document["files"]}
    assert found["model.safetensors"] == found["model-00001-of-00009.safetensors"] == "deleted"
    assert run("push", "wide", "me/wide").code == 0
    assert set(hub.files("me/wide")) == (PUSHED - {".gitattributes"}) | {"other.txt"}


def test_the_optimizer_state_is_published_on_request(hub, wide):
    torch.save({}, wide / "optimizer.pt")
    for name in ("scheduler.pt", "rng_state.pth", "trainer_state.json", "notes.md"):
        (wide / name).write_text("x")
    state = {
        "file": "optimizer.pt",
        "format": "torch",
        "kinds": ["adamw"],
        "policy": "copy",
        "source_digest": "0",
        "digest": "0",
    }
    note(wide, optimizer_state=state)
    assert run("push", "wide", "me/wide").code == 0
    assert set(hub.files("me/wide")) == PUSHED
    assert run("push", "wide", "me/wide", "--with-optimizer").code == 0
    resumed = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    assert set(hub.files("me/wide")) == PUSHED | resumed
    assert "optimizer state: widened (policy `copy`)" in hub.files("me/wide")["README.md"].decode()


def test_a_single_file_is_published_as_a_directory(hub, tmp_path):
    folder = save_model(tmp_path / "narrow", "Llama-tied")
    (folder / "README.md").write_bytes(SOURCE_CARD)
    assert run("widen", str(folder / "model.safetensors"), "-f", "2", "--no-verify", "-o", "wide.safetensors").code == 0
    result = run("push", "wide.safetensors", "me/wide", "--with-optimizer")
    assert result.code == 0, result.err
    assert "no optimizer state was widened" in result.err
    files = hub.files("me/wide")
    assert set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors", "mupscale.json"}
    assert json.loads(files["config.json"])["hidden_size"] == 96
    assert json.loads(files["mupscale.json"])["axes"]["embed"]["factor"] == 2
    assert json.loads(files["mupscale.json"])["source"]["path"] == "model.safetensors"
    assert "contain the path of its source, `narrow/model.safetensors`" in result.err
    card = files["README.md"].decode()
    assert "license: other" in card
    assert "base_model" not in card
    assert str(tmp_path) not in card


def test_a_model_unknown_to_transformers_names_no_library(hub, tmp_path):
    save_mlp(tmp_path / "mlp.safetensors")
    (tmp_path / "mlp.yaml").write_text(
        "about: layers\naxes: {a: {size: from shapes, about: x}}\nwiden: [a]\n"
        'tensors: {"0.weight": "a, .", "0.bias": a, "2.weight": "., /a", "2.bias": ., "4.*": keep}\n'
    )
    widened = run("widen", "mlp.safetensors", "-f", "2", "--no-verify", "--recipe", "mlp.yaml", "--noise", "0.1")
    assert widened.code == 0, widened.err
    assert run("push", "mlp-x2.safetensors", "me/mlp").code == 0
    card = hub.files("me/mlp")["README.md"].decode()
    for text in ("library_name", "license", "base_model", "pipeline_tag"):
        assert text not in card
    assert "--recipe mlp.yaml --noise 0.1 --noise-mode free --noise-scale spectral -o mlp" in card


def test_local_folders_are_not_published(hub, saved, tmp_path):
    assert run("widen", str(saved("Llama-tied")), "-f", "2", "--no-verify", "-o", "deep/wide").code == 0
    assert "../" in (tmp_path / "deep" / "wide" / "mupscale.json").read_text()
    assert run("push", "deep/wide", "me/wide").code == 0
    assert "../" not in hub.files("me/wide")["mupscale.json"].decode()
    assert "nothing to update" in run("push", "deep/wide", "me/wide").out


def test_only_widened_models_are_published(hub, saved, wide):
    refused = run("push", str(saved("Llama-tied")), "me/wide")
    assert refused.code == 2
    assert "was not written by mupscale" in refused.err
    note(wide, verification={**VERIFIED, "agrees": False})
    refused = run("push", "wide", "me/wide")
    assert refused.code == 2
    assert "differs from its source" in refused.err
    assert "is not the name of a model" in run("push", "wide", "wide").err
    assert "name different branches" in run("push", "wide", "me/wide@a", "--revision", "b").err
    assert not hub.requests


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (("GET /api/models/me/wide", 403), ["HTTP 403", "needs write access"]),
        (("POST /api/repos/create", 401), ["HTTP 401", "hf auth login"]),
        (("POST /api/repos/create", 403), ["HTTP 403"]),
        (("POST /api/repos/create", 429), ["too many requests"]),
        (("POST .*/preupload/", 500), ["HTTP 500", "not repeated"]),
        (("POST .*/lfs/objects/batch", 413), ["--max-shard-size"]),
        (("PUT /lfs/", 403), ["HTTP 403"]),
        (("POST .*/commit/", 409), ["conflict", "try again"]),
        (("POST .*/commit/", 412), ["has changed in the meantime"]),
    ],
)
def test_a_refusal_by_the_hub_is_one_message(failure, says, hub, wide):
    hub.fail(*failure)
    result = run("push", "wide", "me/wide")
    assert result.code == 2
    assert "Traceback" not in result.err
    for text in ("error: cannot push to `me/wide`", "hint:", *says):
        assert text in result.err, result.err
    assert TOKEN not in result.err + result.out


def test_forbidden_organizations_and_repositories_created_concurrently(hub, wide):
    assert "HTTP 403" in run("push", "wide", "theirs/wide").err
    hub.add("me/wide", {"a.txt": b"a"})
    made = create_repository(Repository(HubId("me/wide")), private=True)  # the answer to creating it is 409
    assert made.exists
    assert set(made.files) == {"a.txt"}


def test_a_concurrent_commit_is_not_overwritten(hub, wide):
    assert run("push", "wide", "me/wide").code == 0
    (wide / "tokenizer.json").write_text("[]")
    before = hub.files("me/wide")
    prepared = prepare_push("wide", "me/wide")
    hub.add("me/wide", {**before, "README.md": b"# Edited\n"})
    with pytest.raises(Exception, match="HTTP 412"):
        prepared.send()
    assert hub.files("me/wide")["README.md"] == b"# Edited\n"


def test_widening_can_end_with_a_push(hub, saved):
    result = run(
        "widen",
        str(saved("Llama-tied")),
        "-f",
        "2",
        "--no-verify",
        "-o",
        "wide",
        "--push-to-hub",
        "me/wide",
        "--private",
        "--json",
    )
    assert result.code == 0, result.err
    assert json.loads(result.out)["pushed"]["commit"] == hub.repos["me/wide"].refs["main"]
    assert hub.repos["me/wide"].private
    hub.fail("POST .*/commit/", 500)
    failed = run(
        "widen",
        str(saved("Llama-tied")),
        "-f",
        "3",
        "--no-verify",
        "-o",
        "w3",
        "--push-to-hub",
        "me/w3",
        "--private",
        "--commit-message",
        "a b",
    )
    assert failed.code == 2
    assert "w3 is written; to publish it, run `mupscale push w3 me/w3 --private --commit-message 'a b'`" in failed.err
    hub.failures.clear()
    retried = run(*shlex.split(failed.err.rpartition("run `mupscale ")[2].partition("`")[0]))
    assert (retried.code, hub.repos["me/w3"].private) == (0, True)


def test_a_push_that_cannot_work_is_refused_before_the_widening(hub, saved, tmp_path, monkeypatch):
    arguments = ("widen", str(saved("Llama-tied")), "-f", "2", "-o", "wide")
    assert "add `--push-to-hub" in run(*arguments, "--private").err
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrong")
    assert "HTTP 401" in run(*arguments, "--push-to-hub", "me/wide").err
    monkeypatch.delenv("HF_TOKEN")
    assert "not logged in to the Hub" in run(*arguments, "--push-to-hub", "me/wide").err
    assert not (tmp_path / "wide").exists()


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (
            ["a.txt", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"],
            ["optimizer.pt", "rng_state_0.pth", "scheduler.pt"],
        ),
        (["optimizer.safetensors", "optimizer.safetensors.md"], ["optimizer.safetensors"]),
        (
            [
                "optimizer.safetensors.index.json",
                "optimizer-00001-of-00002.safetensors",
                "model-00001-of-00002.safetensors",
            ],
            ["optimizer-00001-of-00002.safetensors", "optimizer.safetensors.index.json"],
        ),
        (["optimizer_0/.metadata", "optimizer_0/__0_0.distcp"], ["optimizer_0/.metadata", "optimizer_0/__0_0.distcp"]),
        (["optimizer/readme", "scheduler.pt"], []),
    ],
)
def test_state_names_finds_the_files_of_an_optimizer_state(names, found):
    assert list(state_names(names)) == found
