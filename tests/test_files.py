"""Files are whole or absent, and a damaged one is refused in one line."""

from __future__ import annotations

import ast
import errno
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import patchdrop
from patchdrop import files
from patchdrop.errors import RunError
from patchdrop.files import (
    claimed,
    read_json,
    read_tensors,
    remove_unfinished,
    write_bytes,
    write_json,
    write_tensors,
    writing,
)
from patchdrop.models.build import build_stage, fill_weights
from patchdrop.runs.folder import RunFolder
from tiny import config_of, tiny_settings

SOURCE = Path(patchdrop.__file__).parent


def one_line(error: pytest.ExceptionInfo[RunError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with one finished stage of a small network."""
    found = RunFolder(tmp_path / "run")
    settings = tiny_settings()
    found.start(settings.to_mapping())
    config = config_of(settings)
    torch.manual_seed(0)
    found.finish("hr", build_stage("hr", config), config, {"figures": {"score": 0.5}, "seconds": 1.0})
    return found


def resaved(run: RunFolder, change: Callable[[dict[str, Tensor]], None]) -> None:
    """The weights changed, with a checksum that fits."""
    path = run.stage("hr") / "model.safetensors"
    config = run.stage_config("hr")
    tensors = read_tensors(path, config["sha256"])
    change(tensors)
    config["sha256"] = write_tensors(path, tensors)
    write_json(run.stage("hr") / "config.json", config)


# --- what was written is what is read


def test_tensors_come_back_with_their_bits_names_shapes_and_types(tmp_path: Path) -> None:
    tensors = {
        "a.b": torch.tensor([1.5, -0.0, 1e-40, torch.inf]),
        "count": torch.tensor(7),
        "mask": torch.tensor([[True, False]]),
        "turned": torch.arange(24.0).view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
        "empty": torch.zeros(0, 3),
    }
    digest = write_tensors(tmp_path / "x.safetensors", tensors)
    found = read_tensors(tmp_path / "x.safetensors", digest)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor)


def test_json_keeps_every_bit_of_a_number_and_every_letter(tmp_path: Path) -> None:
    content = {"a": 0.1 + 0.2, "b": [1e-320, -0.0], "ç": "日本", "n": None, "long": 2**53 + 1}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content


def test_a_finished_stage_is_loaded_with_the_same_bits_in_evaluation_mode(run: RunFolder) -> None:
    torch.manual_seed(0)
    expected = build_stage("hr", config_of(tiny_settings())).state_dict()
    model, config = run.load("hr")
    assert not model.training
    assert config == config_of(tiny_settings())
    found = model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_weights_of_a_loaded_stage_lie_in_memory_as_its_images_do(run: RunFolder) -> None:
    images = [tensor for tensor in run.load("hr")[0].state_dict().values() if tensor.ndim == 4]
    assert images
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in images)


# --- whole or absent


def test_a_file_is_written_beside_flushed_renamed_and_its_folder_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str]] = []

    def recorded(name: str, function: Callable[..., Any], path_of: Callable[..., str]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls.append((name, Path(path_of(*arguments)).name))
            return function(*arguments)

        return call

    monkeypatch.setattr(os, "fsync", recorded("flush", os.fsync, lambda handle: os.readlink(f"/proc/self/fd/{handle}")))
    monkeypatch.setattr(os, "replace", recorded("rename", os.replace, lambda source, target: str(target)))
    folder = tmp_path / "folder"
    write_bytes(folder / "file", b"content")
    (_, other), *rest = calls
    assert re.fullmatch(r"\.file\.[0-9a-f]{16}\.tmp", other)
    assert rest == [("rename", "file"), ("flush", "folder")] and calls[0][0] == "flush"
    assert [p.name for p in folder.iterdir()] == ["file"]
    assert (folder / "file").read_bytes() == b"content"


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(files if step == "open" else os, step, fail, raising=False)
        with pytest.raises(RunError) as caught:
            write_bytes(path, b"new")
    assert one_line(caught).startswith(f"{path}: cannot be written (Input/output error)")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_what_is_needed_and_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError) as caught:
        write_bytes(tmp_path / "file", b"x" * 1234)
    free = os.statvfs(tmp_path)
    message = one_line(caught)
    assert message.startswith(f"{tmp_path / 'file'}: the disk is full, 1234 bytes needed and ")
    said = int(message.split(" bytes needed and ")[1].split(" free")[0])
    assert abs(said - free.f_bavail * free.f_frsize) < 2**30
    assert message.endswith("make room and run the same again")


def test_a_disk_that_fills_up_while_a_file_grows_says_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)

    def write(opened: Any) -> None:
        with opened(tmp_path / "file") as found:
            if isinstance(found, Path):
                found.write_text("x")

    for opened in (files.writing, files.beside):
        with pytest.raises(RunError) as caught:
            write(opened)
        message = one_line(caught)
        assert message.startswith(f"{tmp_path / 'file'}: the disk is full, ") and "needed" not in message
        assert message.endswith(" bytes free; make room and run the same again")


@pytest.mark.parametrize("where", ["file/a.json", "file/below/a.json", "n" * 256])
def test_what_cannot_even_be_begun_is_one_of_our_errors(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written") as caught:
        write_bytes(tmp_path / where, b"x")
    one_line(caught)
    with pytest.raises(RunError, match="cannot be written"), writing(tmp_path / where):
        pass


def test_a_disk_too_full_for_a_folder_is_told_as_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(RunError, match="the disk is full"):
        write_bytes(tmp_path / "new" / "file", b"x")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, where one may be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = shutil.which("mount") is not None and (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
        == 0
    )
    if not mounted:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_on_a_small_disk_that_fills_up_the_old_checkpoint_still_loads(small_disk: Path) -> None:
    path = small_disk / "model.safetensors"
    old = {"weight": torch.arange(1000.0)}
    digest = write_tensors(path, old)
    with pytest.raises(RunError) as caught:
        write_tensors(path, {"weight": torch.zeros(100_000)})
    assert "the disk is full, 400" in one_line(caught)
    assert torch.equal(read_tensors(path, digest)["weight"], old["weight"])
    assert [p.name for p in small_disk.iterdir()] == ["model.safetensors"]


def test_a_limit_on_file_size_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        with pytest.raises(RunError, match="cannot be written"):
            write_bytes(path, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# --- damaged files are refused


def test_each_of_a_hundred_flipped_bits_in_the_weights_is_refused(run: RunFolder) -> None:
    path = run.stage("hr") / "model.safetensors"
    whole = path.read_bytes()
    draw = random.Random(0)
    for _ in range(100):
        bad = bytearray(whole)
        bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(RunError, match="is damaged, its checksum differs"):
            run.load("hr")
    path.write_bytes(whole)
    run.load("hr")


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_weights_cut_short_are_refused(run: RunFolder, keep: int) -> None:
    path = run.stage("hr") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunError, match="is damaged") as caught:
        run.load("hr")
    assert str(path) in one_line(caught)


def test_missing_weights_are_refused(run: RunFolder) -> None:
    (run.stage("hr") / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"model\.safetensors: cannot be read \(No such file"):
        run.load("hr")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[]", b"null", b"3", b"{}", b'{"sha256": "0"}'])
def test_a_damaged_config_is_refused_and_named(run: RunFolder, content: bytes) -> None:
    path = run.stage("hr") / "config.json"
    path.write_bytes(content)
    with pytest.raises(RunError) as caught:
        run.load("hr")
    assert one_line(caught).startswith(f"{path}: ")


def test_a_file_that_is_no_safetensors_is_refused_even_with_its_own_checksum(run: RunFolder) -> None:
    path = run.stage("hr") / "model.safetensors"
    config = run.stage_config("hr")
    for content in (b"no tensors here", b"\x00" * 64, b"\xff" * 64):
        write_bytes(path, content)
        write_json(run.stage("hr") / "config.json", {**config, "sha256": files.hashlib.sha256(content).hexdigest()})
        with pytest.raises(RunError, match="is no safetensors file"):
            run.load("hr")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_numbers_are_refused_and_named(run: RunFolder, value: float) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["network.fc.bias"][1] = value

    resaved(run, spoil)
    with pytest.raises(RunError, match=r"network\.fc\.bias holds values that are not numbers"):
        run.load("hr")


def test_weights_of_another_shape_type_or_name_are_refused_and_named(run: RunFolder) -> None:
    def reshape(tensors: dict[str, Tensor]) -> None:
        tensors["network.fc.bias"] = torch.zeros(4)

    def retype(tensors: dict[str, Tensor]) -> None:
        tensors["network.fc.bias"] = torch.zeros(3, dtype=torch.float64)

    def remove(tensors: dict[str, Tensor]) -> None:
        del tensors["network.fc.bias"]

    def add(tensors: dict[str, Tensor]) -> None:
        tensors["network.fc.bigotry"] = torch.zeros(3)

    path = run.stage("hr") / "model.safetensors"
    config = run.stage_config("hr")
    whole = path.read_bytes()
    for change, words in (
        (reshape, "network.fc.bias is [4], this network has [3]"),
        (retype, "network.fc.bias is "),
        (remove, "'network.fc.bias' is missing or unknown"),
        (add, "'network.fc.bigotry' is missing or unknown"),
    ):
        path.write_bytes(whole)
        write_json(run.stage("hr") / "config.json", config)
        resaved(run, change)
        with pytest.raises(RunError) as caught:
            run.load("hr")
        assert words in one_line(caught)
        assert "remove that stage's folder and train it again" in one_line(caught)


def test_a_config_of_another_class_count_or_grid_does_not_fit_the_weights(run: RunFolder) -> None:
    config = run.stage_config("hr")
    write_json(run.stage("hr") / "config.json", {**config, "classes": ["a", "b"]})
    with pytest.raises(RunError, match=r"network\.fc\.\w+ is \[3"):
        run.load("hr")
    write_json(run.stage("hr") / "config.json", {k: v for k, v in config.items() if k != "grid"})
    with pytest.raises(RunError, match="lacks 'grid'"):
        run.load("hr")


def test_filling_weights_changes_nothing_where_it_is_refused() -> None:
    model = build_stage("lr", config_of(tiny_settings()))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bad = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    bad["network.fc.bias"] = torch.full((3,), torch.nan)
    with pytest.raises(RunError):
        fill_weights(model, bad, "here")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_safetensors_written_by_others_are_read_if_their_checksum_is_known(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(2)}, path)
    digest = files.hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_tensors(path, digest)["a"].tolist() == [1.0, 1.0]
    with pytest.raises(RunError):
        read_tensors(path, digest.upper())


# --- the log


def test_a_log_line_cut_short_by_a_crash_is_passed_over(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.log({"event": "one"})
    run.log({"event": "two"})
    content = (tmp_path / "log.jsonl").read_bytes()
    (tmp_path / "log.jsonl").write_bytes(content[:-5])
    assert run.read_log() == [{"event": "one"}]


def test_lines_that_a_resumed_stage_will_write_again_are_dropped(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for stage, step in (("lr", 3), ("hr", 3), ("hr", 6), ("hr", 9)):
        run.log({"event": "validation", "stage": stage, "step": step})
    run.forget_after("hr", 3)
    assert [(e["stage"], e["step"]) for e in run.read_log()] == [("lr", 3), ("hr", 3)]


# --- nothing that is loaded can run code

FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
FORBIDDEN_CALLS = {
    "torch.load",
    "pickle.load",
    "pickle.loads",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.full_load",
    "numpy.load",
    "np.load",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "eval",
    "exec",
    "compile",
    "__import__",
}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def dangers(source: str) -> Iterator[str]:
    """What in a file can run code that is not the program's own."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in FORBIDDEN_IMPORTS)
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{a.name}" for a in node.names}
            yield from names & FORBIDDEN_CALLS
            if (node.module or "").split(".")[0] in FORBIDDEN_IMPORTS:
                yield str(node.module)
        elif isinstance(node, (ast.Attribute, ast.Name)) and dotted(node) in FORBIDDEN_CALLS:
            yield dotted(node)
        elif isinstance(node, ast.keyword) and node.arg in ("shell", "allow_pickle") and not is_false(node.value):
            yield f"{node.arg}="


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load('x')",
        "from torch import load",
        "import pickle",
        "from pickle import loads as read",
        "import yaml\nyaml.load('x')",
        "import os\nos.system('ls')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "read = torch.load",
        "np.load(f, allow_pickle=True)",
        "eval('1')",
    ],
)
def test_the_walk_sees(source: str) -> None:
    assert list(dangers(source))


def test_no_source_file_loads_pickles_or_runs_a_shell() -> None:
    paths = sorted(SOURCE.rglob("*.py"))
    assert len(paths) > 30
    found = {str(p.relative_to(SOURCE)): list(dangers(p.read_text(encoding="utf-8"))) for p in paths}
    assert {name: items for name, items in found.items() if items} == {}


def test_a_pickle_in_place_of_the_weights_does_not_run(run: RunFolder, tmp_path: Path) -> None:
    import pickle

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    path = run.stage("hr") / "model.safetensors"
    content = pickle.dumps(Bomb())
    path.write_bytes(content)
    config = run.stage_config("hr")
    write_json(run.stage("hr") / "config.json", {**config, "sha256": files.hashlib.sha256(content).hexdigest()})
    with pytest.raises(RunError):
        run.load("hr")
    (run.path / "settings.yaml").write_text(f"data: !!python/object/apply:os.mkdir [{tmp_path / 'exploded'}]\n")
    with pytest.raises(patchdrop.errors.UsageError):
        run.settings()
    assert not (tmp_path / "exploded").exists()


# --- one writer at a time


def test_a_claim_is_for_one_at_a_time_and_ends_with_its_block(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "work"
    with claimed(path) as mine:
        assert mine
        with claimed(path) as theirs:
            assert not theirs
        assert path.exists()
    assert not path.exists()
    with claimed(path) as again:
        assert again


def test_whoever_opened_a_claim_that_was_removed_meanwhile_does_not_have_it(tmp_path: Path) -> None:
    path = tmp_path / "work"
    with claimed(path):
        late = os.open(path, os.O_RDWR)
    with claimed(path) as mine:
        assert mine and not files._locked(late, path)
    assert not files._locked(late, path)
    os.close(late)


def test_the_claim_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / "work"
    code = f"""
from pathlib import Path
from patchdrop.files import claimed
with claimed(Path({str(path)!r})) as mine:
    print(mine, flush=True)
    input()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "True\n"
    with claimed(path) as mine:
        assert not mine
    process.kill()
    process.wait()
    with claimed(path) as mine:
        assert mine


def test_a_link_planted_in_the_folder_is_never_written_through(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "claim").symlink_to(target)
    with pytest.raises(RunError, match="cannot be written"), claimed(tmp_path / "claim"):
        pass
    (tmp_path / "file").symlink_to(target)
    write_bytes(tmp_path / "file", b"new")
    assert target.read_text() == "precious" and (tmp_path / "file").read_bytes() == b"new"


def test_many_writers_of_one_file_leave_one_whole_file_and_nothing_else(tmp_path: Path) -> None:
    contents = [bytes([65 + i]) * 100_000 for i in range(8)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda content: [write_bytes(tmp_path / "file", content) for _ in range(20)], contents))
    assert (tmp_path / "file").read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".a.0123456789abcdef.tmp.json", ".b.0123456789abcdef.tmp", "a.json", "mine.tmp"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path, "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.0123456789abcdef.tmp", "a.json", "mine.tmp"]
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "mine.tmp"]
