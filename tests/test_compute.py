"""Device and precision at inference: what runs where, how exactly, how far ahead it reads, and what if memory ends."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

import patchdrop
from elsewhere import ELSEWHERE, There, elsewhere
from patchdrop.commands import predicting, runs
from patchdrop.commands.calibrating import calibrate
from patchdrop.commands.predicting import Asking
from patchdrop.episode import Classify, PatchDrop, play
from patchdrop.errors import DataError, UsageError
from patchdrop.models.build import build_stage
from patchdrop.models.compute import Compute, Networks
from patchdrop.networks.device import exact_float32
from patchdrop.packed import Packed
from patchdrop.policy.choice import greedy
from patchdrop.read import image_file, tiled
from patchdrop.read.ahead import decoders, one_ahead
from patchdrop.read.images import read_image
from patchdrop.read.source import from_memory
from patchdrop.scenes import concurrency
from patchdrop.scenes import model as scene_model
from patchdrop.serve.predictor import Predictor
from patchdrop.settings.machine import Machine
from pyramids import picture, write_cog
from rows import CPU
from test_sparse import NETWORKS
from tiny import config_of, tiny_flags, tiny_settings, unsettle, write_folder
from untrained import SETTINGS

Run = Callable[..., tuple[int, str, str]]
PATIENCE = 60.0
COARSE = Machine(device="cpu", precision="bfloat16")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eleven pictures of HR's size, more than a batch of the tests below."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(11):
        Image.fromarray(picture(64, 64, seed=i).transpose(1, 2, 0)).save(root / f"{i:02d}.png")
    return sorted(root.iterdir())


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of 4 x 5 cells."""
    return write_cog(tmp_path_factory.mktemp("scene") / "scene.tif", picture(256, 320, seed=2), block=64)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of two images, groups of eight cells, parts of four."""
    monkeypatch.setattr(predicting, "BATCH", 2)
    monkeypatch.setattr(tiled, "GROUP_PIXELS", 64 * 64 * 3 * 8)
    monkeypatch.setattr(tiled, "PART_PIXELS", 64 * 64 * 3 * 4)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that was trained, and the folder of its images."""
    from patchdrop.cli import main

    root = tmp_path_factory.mktemp("learnt")
    data, out = write_folder(root / "data"), root / "run"
    flags = {"policy": "ranking", "low_stream": "pt", "fusion": "capped", "fill": "low"}
    epochs = {f"epochs_{stage}": 1 for stage in ("lr", "hr", "patches", "pt", "ft1", "ft2")}
    words = tiny_flags(data=str(data), **flags, **epochs)
    assert main(["train", *words, "--insist", "--out", str(out)]) in (0, 5)
    return out, data


# --- the flags


def every_command(model: Path, photo: Path, scene: Path, out: Path) -> Iterator[tuple[object, ...]]:
    yield "predict", model, photo
    yield "predict", model, scene, "--out", out / "predicted"
    yield "plan", model, scene, "--out", out / "planned"
    yield "evaluate", model
    yield "calibrate", model
    yield "train", "--out", out / "trained"
    yield "compare", "--table", "fmow", "--data", photo.parent, "--out", out / "compared"


@pytest.mark.parametrize("which", range(7))
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--device", "gpu"), "device: 'gpu' is not one of auto, cpu, cuda"),
        (("--device", "cuda:99"), "device cuda:99: torch finds "),
        (("--precision", "half"), "precision"),
    ],
)
def test_a_device_or_precision_that_there_is_not_is_one_line(
    model: Path, photos: list[Path], scene: Path, run: Run, tmp_path: Path, which: int, flags: tuple[str], says: str
) -> None:
    command = list(every_command(model, photos[0], scene, tmp_path))[which]
    code, out, err = run(*command, *flags)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and says in err
    assert list(tmp_path.iterdir()) == []


def test_python_refuses_them_too(model: Path) -> None:
    for refused in ({"device": "tpu"}, {"precision": "half"}):
        with pytest.raises(UsageError, match="is not one of"):
            Predictor(model, **refused)  # type: ignore[arg-type]
    assert patchdrop.Machine().device == "auto"


@without_gpu
def test_what_a_run_was_trained_on_does_not_bind_it(learnt: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    out, _ = learnt
    there = Path(shutil.copytree(out, tmp_path / "run"))
    settings = yaml.safe_load((there / "settings.yaml").read_text())
    (there / "settings.yaml").write_text(yaml.safe_dump({**settings, "device": "cuda"}))
    for flags in ((), ("--device", "cpu")):
        code, text, err = run("evaluate", there, "--json", *flags)
        assert code == 0, err
        assert json.loads(text)["provenance"]["device"] == "cpu"
    code, text, err = run("calibrate", there, "--mean-budget", 4, "--precision", "bfloat16", "--json")
    assert code == 0, err
    assert json.loads(text)["provenance"]["precision"] == "bfloat16"
    assert run("evaluate", there, "--device", "cuda")[0] == 2


# --- precision


@pytest.mark.parametrize("policy", ["ranking", "bernoulli"])
@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_chooses_the_same_patches_and_is_nearly_as_sure(name: str, policy: str) -> None:
    model, high, low = stage_of(name, policy)
    exact, coarse = (
        played(model, Compute(CPU, precision), high, low)  # type: ignore[arg-type]
        for precision in ("float32", "bfloat16")
    )
    for same in ("scores", "choice"):
        assert torch.equal(getattr(exact, same), getattr(coarse, same))
    if exact.chances is not None:
        assert torch.equal(exact.chances, coarse.chances)
    assert 0 < int(exact.choice.sum()) < exact.choice.numel()
    assert coarse.logits.dtype == torch.float32
    assert not torch.equal(exact.logits, coarse.logits)
    torch.testing.assert_close(coarse.logits.softmax(1), exact.logits.softmax(1), rtol=0, atol=0.1)


def stage_of(name: str, policy: str) -> tuple[PatchDrop, Tensor, Tensor]:
    """The last stage of a run that was not trained, with HR and LR of six images."""
    ranks = {"policy": "ranking", "fusion": "capped"} if policy == "ranking" else {"fusion": "learned"}
    fill = "mean" if name == "bagnet" else "low"
    settings = tiny_settings(classifier=name, hr_network=NETWORKS[name], fill=fill, low_stream="pt", **ranks)
    torch.manual_seed(0)
    model = unsettle(build_stage("ft2", config_of(settings)))
    assert isinstance(model, PatchDrop)
    high = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)
    return model, high, torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)


def played(model: PatchDrop, compute: Compute, high: Tensor, low: Tensor) -> Any:
    with torch.inference_mode():
        return play(partial(compute.look, model), greedy, from_memory(high.to(compute.device), GRID), low)


GRID = SETTINGS.shape.grid


def test_float32_is_all_of_it_on_a_gpu_and_what_was_set_comes_back() -> None:
    cudnn: Any = torch.backends.cudnn

    def now() -> tuple[str, ...]:
        return cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, torch.backends.cuda.matmul.fp32_precision

    def broken(device: torch.device) -> None:
        with exact_float32(device):
            seen.append(now())
            raise ZeroDivisionError

    before, seen = now(), list[tuple[str, ...]]()
    for device in (torch.device("cuda"), CPU):
        with pytest.raises(ZeroDivisionError):
            broken(device)
        assert now() == before and cudnn.allow_tf32  # torch's default
    assert seen == [("ieee", "ieee", "ieee"), before]


def test_results_of_scenes_are_not_mixed_with_those_of_another_precision(
    model: Path, scene: Path, run: Run, tmp_path: Path
) -> None:
    def found(out: str, *flags: object) -> dict[str, Any]:
        code, text, err = run("predict", model, scene, "--out", tmp_path / out, "--json", *flags)
        assert code == 0, err
        return dict(json.loads(text)["scenes"][0])

    exact, coarse = found("exact"), found("coarse", "--precision", "bfloat16")
    assert (exact["precision"], coarse["precision"]) == (None, "bfloat16")
    assert exact["patches"] == coarse["patches"] and exact["execution"] == coarse["execution"]
    cells = [
        [json.loads(line) for line in (tmp_path / out / made["files"]["jsonl"]).read_text().splitlines()]
        for out, made in (("exact", exact), ("coarse", coarse))
    ]
    assert [cell["patches"] for cell in cells[0]] == [cell["patches"] for cell in cells[1]]
    sure = [[cell["probability"] for cell in side] for side in cells]
    assert sure[0] != sure[1] and sure[0] == pytest.approx(sure[1], abs=0.05)
    assert found("exact") == exact  # and not read again
    for out, flags in (("coarse", ()), ("exact", ("--precision", "bfloat16"))):
        code, _, err = run("predict", model, scene, "--out", tmp_path / out, *flags)
        assert code == 2 and "precision" in err
    assert run("plan", model, scene, "--out", tmp_path / "plan", "--precision", "bfloat16")[0] == 0
    assert run("predict", model, scene, "--out", tmp_path / "by", "--plan", tmp_path / "plan" / "plan.json")[0] == 0


# --- elsewhere


def test_a_device_elsewhere_refuses_what_a_gpu_refuses() -> None:
    with elsewhere() as there:
        far, near = torch.ones(2, 3).to(there), torch.ones(2, 3)
        assert isinstance(far, There) and far.device == there
        with pytest.raises(RuntimeError, match="same device"):
            far + near
        with pytest.raises(RuntimeError, match="indices should be"):
            near[far.argmax(1)]
        with pytest.raises(TypeError):
            far.numpy()
        assert (far[near.argmax(1).clamp(max=1)] + 1).sum().item() == 12
        assert torch.equal((far + far).cpu(), near + near)


@pytest.mark.parametrize("policy", ["ranking", "bernoulli"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_goes_where_the_model_is(name: str, policy: str) -> None:
    model, high, low = stage_of(name, policy)
    here = played(model, Compute(CPU), high, low)
    with elsewhere() as device:
        there = played(model.to(device), Compute(device), high, low)
        assert all(isinstance(part, There) for part in (there.scores, there.choice, there.logits))
        torch.testing.assert_close(there.logits.cpu(), here.logits)
        assert torch.equal(there.choice.cpu(), here.choice)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever asks for a device gets the one elsewhere."""
    monkeypatch.setattr("patchdrop.models.compute.device_of", lambda name: ELSEWHERE)
    monkeypatch.setattr(concurrency, "ThreadPoolExecutor", AtOnce)  # what is elsewhere is so in one thread only
    with elsewhere():
        yield


class AtOnce(Executor):
    """Does the work in the thread that gives it."""

    def __init__(self, *ignored: object) -> None:
        pass

    def submit(self, work: Any, /, *given: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(work(*given, **named))
        except BaseException as error:
            done.set_exception(error)
        return done


@pytest.mark.usefixtures("there", "few")
def test_files_and_scenes_are_predicted_elsewhere(model: Path, photos: list[Path], scene: Path, tmp_path: Path) -> None:
    predictor = Predictor(model)
    assert predictor.compute.device == ELSEWHERE
    assert len(predictor.predict(photos)) == len(predictor.explain(photos)) == 11
    assert predictor.scores(photos).device == CPU
    dial = patchdrop.Dial(mean_budget=4)
    assert len(list(predicting.predict(Asking(model, dial=dial, overlay=tmp_path), photos))) == 11
    from patchdrop.scenes.listing import Source
    from patchdrop.scenes.plan import Terms, plan
    from patchdrop.scenes.predict import Results, predict
    from patchdrop.scenes.walk import Reading

    choosing, sources = scene_model.Choosing(model, None, None), [Source(str(scene))]
    told: list[str] = []
    planned = plan(choosing, sources, tmp_path / "plan", Reading(), Terms(), told.append)
    for plan_file in (None, tmp_path / "plan" / "plan.json"):
        out = Results(tmp_path / f"found{plan_file is None}")
        found = predict(choosing, sources, out, Reading(), told.append, plan_file)
        assert found["scenes"][0]["patches"] == planned["scenes"][0]["patches"] > 0
    assert told == []


@pytest.mark.usefixtures("there")
@pytest.mark.long
def test_a_run_is_evaluated_and_calibrated_elsewhere(learnt: tuple[Path, Path], tmp_path: Path) -> None:
    out = Path(shutil.copytree(learnt[0], tmp_path / "run"))
    document = runs.evaluate(out)
    assert document["provenance"]["device"] == ELSEWHERE.type
    assert {row["stage"] for row in document["rows"]} == {"lr", "hr", "pt", "ft1", "ft2"}
    assert len(calibrate(out, target=patchdrop.Target(mean_budget=4))["points"]) > 1
    assert runs.evaluate(out, dial=patchdrop.Dial(calibrated=True))["rows"]
    assert runs.evaluate(out, dial=patchdrop.Dial(mean_budget=3))["rows"]


# --- memory


class Short:
    """A machine whose memory takes so many images, counted where classifiers run; it tells how many came."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int, looks: int = 10**9) -> None:
        self.seen: list[int] = []
        classify, look = Compute.classify, Compute.look

        def classified(compute: Compute, by: Classify, packed: Packed, low: Tensor) -> Tensor:
            assert packed.batch == len(low)
            if len(low) > room:
                raise torch.OutOfMemoryError("no memory")
            self.seen.append(len(low))
            return classify(compute, by, packed, low)

        def looked(compute: Compute, model: PatchDrop, low: Tensor) -> Any:
            if len(low) > looks:
                raise torch.OutOfMemoryError("no memory")
            return look(compute, model, low)

        monkeypatch.setattr(Compute, "classify", classified)
        monkeypatch.setattr(Compute, "look", looked)


@pytest.mark.parametrize(("room", "looks"), [(3, 99), (99, 4), (3, 5), (1, 1)])
def test_memory_that_runs_out_halves_the_batch_once_and_for_all_and_says_so_once(
    model: Path, photos: list[Path], run: Run, monkeypatch: pytest.MonkeyPatch, room: int, looks: int
) -> None:
    code, text, err = run("predict", model, *photos, "--json", "--device", "cpu")
    assert code == 0 and "memory" not in err
    whole = json.loads(text)["predictions"]
    with monkeypatch.context() as patched:
        short = Short(patched, room, looks)
        code, text, err = run("predict", model, *photos, "--json", "--device", "cpu")
    assert code == 0 and err.count("out of memory") == 1 and err.count("\n") == 1, err
    halved = json.loads(text)["predictions"]
    assert [(p["path"], p["label"], p["patches"]) for p in halved] == [
        (p["path"], p["label"], p["patches"]) for p in whole
    ]
    assert [p["probability"] for p in halved] == pytest.approx([p["probability"] for p in whole], abs=1e-5)
    assert sum(short.seen) == 11 and max(short.seen) <= min(room, looks)


def test_what_fits_is_kept_for_the_batches_that_follow(photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    network, high, low = stage_of("masked", "ranking")
    short = Short(monkeypatch, 2)
    networks = Networks(network, Compute(CPU))
    for _ in range(2):
        with torch.inference_mode():
            play(networks.look, greedy, from_memory(high, GRID), low)
    assert networks.most == 2 and short.seen == [2, 1, 2, 1, *[2] * 3]  # of six: three and three, then two and one


@pytest.mark.usefixtures("few")
def test_scenes_go_on_in_halves_too(
    model: Path, scene: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(out: str) -> tuple[list[Any], str]:
        code, text, err = run("predict", model, scene, "--out", tmp_path / out, "--json", "--jobs", 2)
        assert code == 0, err
        name = json.loads(text)["scenes"][0]["files"]["jsonl"]
        return [json.loads(line) for line in (tmp_path / out / name).read_text().splitlines()], err

    whole, _ = found("whole")
    with monkeypatch.context() as patched:
        short = Short(patched, 1)
        halved, err = found("halved")
    assert set(short.seen) == {1} and err.count("out of memory") == 1
    for ours, theirs in zip(halved, whole, strict=True):
        assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-5)
        assert {**ours, "probability": 0} == {**theirs, "probability": 0}


def test_memory_for_no_image_at_all_is_one_line(
    model: Path, photos: list[Path], scene: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    Short(monkeypatch, 0)
    for source in (photos[0], scene):
        code, _, err = run("predict", model, source)
        assert code == 2 and "error: device cpu: out of memory with a single image; use --device cpu" in err


# --- reading ahead


def test_one_ahead_keeps_the_order_and_makes_the_next_one_first() -> None:
    made: list[int] = []
    for item in one_ahead(made.append(i) or i for i in range(4)):
        assert made == list(range(min(item + 2, 4)))
    assert list(one_ahead(iter(()))) == []


class Watched:
    """Every HR file that is decoded, and a way to wait for one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> None:
        self.decoded: list[str] = []
        self._news = threading.Condition()

        def read(path: Path, *rest: Any, **named: Any) -> Tensor:
            time.sleep(seconds)
            with self._news:
                self.decoded.append(path.stem)
                self._news.notify_all()
            return read_image(path, *rest, **named)

        monkeypatch.setattr(image_file, "read_image", read)

    def wait(self, name: str) -> None:
        with self._news:
            assert self._news.wait_for(lambda: name in self.decoded, PATIENCE)


@pytest.mark.usefixtures("few")
def test_the_files_of_coming_batches_are_decoded_while_one_is_classified(
    model: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch)
    answer = Predictor.answer

    def slow(predictor: Predictor, asked: Any) -> Any:
        ahead = 2 * (asked.files.paths[0] == photos[0]) + 4
        last = min(int(asked.files.paths[0].stem) + 5, 10)  # the last file of the batch after the next
        watched.wait(f"{last:02d}")
        assert len(watched.decoded) <= int(asked.files.paths[0].stem) + 2 + ahead  # and no batch more
        return answer(predictor, asked)

    monkeypatch.setattr(Predictor, "answer", slow)
    found = list(predicting.predict(Asking(model), photos))
    assert [p.path for p in found] == [str(path) for path in photos]
    assert sorted(watched.decoded) == [path.stem for path in photos]


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("lows", [False, True])
@pytest.mark.parametrize("picture_of", [False, True])
def test_a_damaged_file_is_told_in_its_place_and_takes_no_other_with_it(
    model: Path, photos: list[Path], tmp_path: Path, lows: bool, picture_of: bool
) -> None:
    bad, gone = tmp_path / "bad.png", tmp_path / "gone.png"
    bad.write_bytes(photos[0].read_bytes()[:200])
    given = [*photos[:3], bad, *photos[3:6], gone, *photos[6:]]
    low = photos[:1] * len(given) if lows else None
    told: list[str] = []
    dials = (None, patchdrop.Dial(mean_budget=16))  # every patch, so that each HR file is opened
    for dial in dials if not lows else dials[1:]:
        told.clear()
        asking = Asking(model, dial=dial, overlay=tmp_path / "pictures" if picture_of else None)
        found = list(predicting.predict(asking, given, low, told.append))
        assert [p.path for p in found] == [str(path) for path in photos]
        assert [reason.split(":")[0] for reason in told] == [str(bad), str(gone)]
    with pytest.raises(DataError, match=r"bad\.png"):
        list(predicting.predict(Asking(model, dial=dials[1]), given, low))


def decoding() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.mark.parametrize("how", ["interrupt", "close", "error"])
def test_work_that_ends_early_leaves_no_thread_and_decodes_no_more(
    model: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    before = decoding()  # of a test in the same process
    monkeypatch.setattr(predicting, "BATCH", 50)
    watched = Watched(monkeypatch, seconds=0.02)
    many = photos[:1] * 200
    ended = {"interrupt": KeyboardInterrupt, "error": ZeroDivisionError}.get(how)
    if ended is not None:

        def stopped(predictor: Predictor, asked: Any) -> Any:
            raise ended

        monkeypatch.setattr(Predictor, "answer", stopped)
        with pytest.raises(ended):
            list(predicting.predict(Asking(model), many))
    else:
        answers = iter(predicting.predict(Asking(model), many))
        next(answers)
        answers.close()  # type: ignore[attr-defined]
    assert set(decoding()) <= set(before)
    assert len(watched.decoded) < 150  # of the batch that came next but one, not all


def test_decoders_drop_what_has_not_begun() -> None:
    begun: list[int] = []
    before = decoding()
    gate = threading.Event()
    with decoders(1) as threads:
        threads.submit(gate.wait, PATIENCE)
        for i in range(5):
            threads.submit(begun.append, i)
        threading.Timer(0.05, gate.set).start()
    assert begun == [] and set(decoding()) <= set(before)


# --- on a GPU


@needs_gpu
@pytest.mark.parametrize("policy", ["ranking", "bernoulli"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_gpu_chooses_as_the_cpu_and_is_as_sure(name: str, policy: str) -> None:
    model, high, low = stage_of(name, policy)
    here = played(model, Compute(CPU), high, low)
    gpu = torch.device("cuda")
    model.to(gpu)
    for precision, near in (("float32", 1e-4), ("bfloat16", 0.1)):
        there = played(model, Compute(gpu, precision), high, low)  # type: ignore[arg-type]
        assert torch.equal(there.choice.cpu(), here.choice)
        torch.testing.assert_close(there.scores.cpu(), here.scores, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(there.logits.cpu().softmax(1), here.logits.softmax(1), rtol=0, atol=near)
    assert torch.backends.cudnn.allow_tf32  # as it was before


@needs_gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_command_runs_on_a_gpu(
    learnt: tuple[Path, Path], model: Path, photos: list[Path], scene: Path, run: Run, tmp_path: Path, precision: str
) -> None:
    out = Path(shutil.copytree(learnt[0], tmp_path / "run"))
    for device in ("cuda", "cpu"):
        flags = ("--device", device, "--precision", precision)
        for command in (
            ("evaluate", out),
            ("calibrate", out, "--mean-budget", 4),
            ("evaluate", out, "--calibrated"),
            ("evaluate", out, "--mean-budget", 3),
            ("predict", model, *photos),
            ("predict", model, *photos, "--mean-budget", 4, "--overlay", tmp_path / "pictures"),
            ("plan", model, scene, "--out", tmp_path / f"plan-{device}"),
            ("predict", model, scene, "--out", tmp_path / f"found-{device}"),
            ("predict", model, scene, "--out", tmp_path / f"by-{device}", "--plan", tmp_path / "plan-cuda/plan.json"),
        ):
            code, _, err = run(*command, *flags)
            assert code == 0, err
