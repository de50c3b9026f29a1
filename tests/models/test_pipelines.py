"""Whole pipelines of diffusers: the same runs as their own, and everything that models can do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_pipelines import PIPELINES, pipeline
from torch import Tensor

import sdegen as sg

pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
N, SCALE = 2, 3.0
PROMPTS = {"dit": ["thing 3", "item 70"], "latent diffusion": None}
WORDS = {
    "dit": {"class_labels": [3, 70]},
    "latent diffusion": {"batch_size": N},
    "pixart": {"clean_caption": False, "use_resolution_binning": False, "height": 16, "width": 16},
    "flux": {"height": 16, "width": 16},
}


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def folders(diffusers, tmp_path_factory):
    """Each pipeline on disk, written when it is first asked for."""
    root = tmp_path_factory.mktemp("pipelines")

    def folder(name: str):
        if not (root / name).exists():
            pipeline(diffusers, name).save_pretrained(root / name)
        if name == "dit":  # as published ones have it
            index = root / name / "model_index.json"
            names = {i: f"thing {i}, item {i}" for i in range(1000)}
            index.write_text(json.dumps({**json.loads(index.read_text()), "id2label": names}))
        return root / name

    return folder


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, float(b.abs().max())))


def prompts(name: str) -> list[str] | None:
    return PROMPTS.get(name, ["red cat", "blue boot"])


def their_run(pipe, name: str, steps: int = 6, **words) -> tuple[Tensor, Tensor, Tensor, list[float]]:
    """The latents that a pipeline starts from and ends at, its pictures in [0, 1], and the times of its nodes."""
    seen: list[tuple[Tensor, Tensor]] = []
    step = pipe.scheduler.step

    def watched(output, t, sample, *args, **options):
        found = step(output, t, sample, *args, **options)
        seen.append((sample, found[0]))
        return found

    pipe.scheduler.step = watched
    if name not in ("dit", "latent diffusion"):
        words = {"prompt": prompts(name), **words}
    if name != "latent diffusion":
        words = {"guidance_scale": SCALE, "output_type": "pt", **words}
    else:
        words["output_type"] = "np"
    images = pipe(
        generator=torch.Generator().manual_seed(0), num_inference_steps=steps, **WORDS.get(name, {}), **words
    ).images
    pipe.scheduler.step = step
    images = torch.as_tensor(images) if torch.is_tensor(images) else torch.as_tensor(images).permute(0, 3, 1, 2)
    return seen[0][0][:N], seen[-1][1][:N], images, nodes(pipe.scheduler)


def nodes(scheduler) -> list[float]:
    if hasattr(scheduler, "sigmas"):
        return scheduler.sigmas.double().tolist()
    n = scheduler.config["num_train_timesteps"]
    return [(int(t) + 1) / n for t in scheduler.timesteps] + [0.0 if scheduler.config["set_alpha_to_one"] else 1 / n]


def our_run(found: sg.Pipeline, name: str, **how):
    if found.text is None:
        return sg.sample(found.model, N, **how)
    cond = found.text(prompts(name))
    null = cond.pop("null")
    if name == "flux":  # told its guidance
        return sg.sample(found.model, N, guidance=SCALE, **cond, **how)
    return sg.sample(sg.Guided(found.model, SCALE, null=null), N, **cond, **how)


def unpacked(x: Tensor, name: str) -> Tensor:
    return __import__("diffusers").FluxPipeline._unpack_latents(x, 8, 8, 1) if name == "flux" else x


@pytest.mark.parametrize("name", PIPELINES)
def test_a_run_on_the_pipelines_own_nodes_is_its_own_run(diffusers, folders, name):
    pipe = diffusers.DiffusionPipeline.from_pretrained(folders(name), local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    start, end, images, times = their_run(pipe, name)
    found = sg.from_pipeline(folders(name), size=(16, 16))
    solver = "euler" if hasattr(pipe.scheduler, "sigmas") else "ddim"
    ours = our_run(found, name, solver=solver, steps=times, x_init=unpacked(start, name)).x
    close(ours, unpacked(end, name))
    with torch.no_grad():
        shown = (found.model.decode(ours) / 2 + 0.5).clamp(0, 1)
    close(shown, images, 1e-4)


def test_a_pipeline_object_is_its_folder(diffusers, folders):
    pipe = diffusers.DiffusionPipeline.from_pretrained(folders("stable diffusion"), local_files_only=True)
    ours = [
        our_run(sg.from_pipeline(it), "stable diffusion", steps=4, seed=0).x
        for it in (pipe, folders("stable diffusion"))
    ]
    close(ours[0], ours[1], 0.0)


@pytest.mark.parametrize("name", ["stable diffusion", "stable diffusion xl", "dit", "stable diffusion 3", "pixart"])
def test_a_prompt_is_heard_by_its_own_samples_whatever_else_is_asked(folders, name):
    """Rows of several prompts are those of each alone; n repeats each; what guidance goes away from is one sample's."""
    text = sg.from_pipeline(folders(name)).text
    first, second = prompts(name)
    both, one, other = text([first, second, first]), text(first), text(second, n=2)
    assert set(both) == set(one) == set(other)
    flat = {
        key: {k: dict(sg_flat(v)) for k, v in found.items() if k != "null"}
        for key, found in (("both", both), ("one", one), ("other", other))
    }
    for word, parts in flat["both"].items():
        for key, value in parts.items():
            assert len(value) == 3 and len(flat["one"][word][key]) == 1 and len(flat["other"][word][key]) == 2
            close(value[[0, 2]].double(), flat["one"][word][key].double().expand_as(value[[0, 2]]), 1e-5)
            close(value[[1, 1]].double(), flat["other"][word][key].double(), 1e-5)
    shapes = {k: {n: v.shape[1:] for n, v in parts.items()} for k, parts in flat["one"].items()}
    assert {k: {n: v.shape for n, v in sg_flat(value)} for k, value in one["null"].items()} == shapes


def sg_flat(value):
    return list(value.items()) if isinstance(value, dict) else [("", value)]


@pytest.mark.parametrize("name", ["stable diffusion", "stable diffusion xl", "stable diffusion 3", "pixart", "flux"])
def test_a_negative_prompt_is_what_guidance_goes_away_from(folders, name):
    text = sg.from_pipeline(folders(name)).text
    given, wanted = text("red cat", negative="blue boot")["null"], text("blue boot")
    for word, value in given.items():
        for (_, a), (_, b) in zip(sg_flat(value), sg_flat(wanted[word]), strict=True):
            close(a.double(), b[0].double(), 1e-5)
    assert any(
        (a != b).any()
        for (_, a), (_, b) in zip(
            sg_flat(given["encoder_hidden_states"]),
            sg_flat(text("red cat")["null"]["encoder_hidden_states"]),
            strict=True,
        )
    )


@pytest.mark.parametrize("name", PIPELINES)
def test_tolerances_budgets_and_seeds_are_those_of_any_model(folders, name):
    found = sg.from_pipeline(folders(name), size=(16, 16))
    whole = our_run(found, name, rtol=0.1, seed=3)
    assert bool((whole.status == 0).all()) and whole.x.shape == (N, 4, 8, 8)
    assert found.model.decode(whole.x).shape == (N, 3, 16, 16)
    parts = our_run(found, name, rtol=0.1, seed=3, batch_size=1)
    close(whole.x, parts.x, 1e-3)
    twice = 1 if name in ("latent diffusion", "flux") else 2
    assert our_run(found, name, steps=5, seed=3).nfe.tolist() == [5 * twice] * N
    finer = our_run(found, name, rtol=1e-2, seed=3)
    assert finer.nfe.sum() > whole.nfe.sum()


def test_pictures_of_another_size(folders):
    model, _, text = sg.from_pipeline(folders("stable diffusion xl"), size=(8, 24))
    cond = text("red cat")
    assert cond["added_cond_kwargs"]["time_ids"].tolist() == [[8, 24, 0, 0, 8, 24]]
    null = cond.pop("null")
    x = sg.sample(sg.Guided(model, 2.0, null=null), 1, steps=3, seed=0, **cond).x
    assert model.decode(x).shape == (1, 3, 8, 24)
    with pytest.raises(sg.InvalidInputError, match=r"got size=\(9, 24\), expected \(height, width\), multiples of 2"):
        sg.from_pipeline(folders("stable diffusion xl"), size=(9, 24))


def test_a_space_encodes_what_it_decodes_as_the_pipeline_does(diffusers, folders):
    """Their latents are (E - shift) factor, or with a mean and a standard deviation for each channel."""
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for name, part in (("stable diffusion 3", "vae"), ("stable diffusion xl", "vae"), ("latent diffusion", "vqvae")):
        pipe = diffusers.DiffusionPipeline.from_pretrained(folders(name), local_files_only=True)
        vae, space = getattr(pipe, part), sg.from_pipeline(pipe).space
        with torch.no_grad():
            raw = vae.encode(x).latents if part == "vqvae" else vae.encode(x).latent_dist.mean
            if name == "stable diffusion xl":
                mean, std = (torch.tensor(vae.config[f"latents_{word}"]).view(1, 4, 1, 1) for word in ("mean", "std"))
                wanted = (raw - mean) * vae.config["scaling_factor"] / std
            else:
                wanted = (raw - vae.config.get("shift_factor", 0.0)) * vae.config["scaling_factor"]
            close(space.encode(x), wanted)
            close(space.decode(wanted), vae.decode(raw).sample, 1e-4)
        drawn = space.encode(x, seed=0)
        assert bool((drawn == space.encode(x)).all()) == (part == "vqvae")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (lambda text: text([]), "got no prompt"),
        (lambda text: text(3), "expected texts"),
        (lambda text: text("a", n=0), "whole number from 1"),
        (lambda text: text(None), "prompts"),
    ],
)
def test_prompts_that_are_none_are_refused(folders, asked, message):
    with pytest.raises(sg.InvalidInputError, match=message):
        asked(sg.from_pipeline(folders("stable diffusion")).text)


def test_classes_are_asked_for_by_name_or_number(folders):
    text = sg.from_pipeline(folders("dit")).text
    assert text(["thing 3", "item 70"])["class_labels"].tolist() == text([3, 70])["class_labels"].tolist() == [3, 70]
    assert text(3)["null"]["class_labels"].item() == 1000
    with pytest.raises(sg.InvalidInputError, match="got 'shark', expected the name of a class"):
        text("shark")
    with pytest.raises(sg.InvalidInputError, match="expected none: this network is told classes"):
        text(3, negative="ugly")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda folder: (folder / "model_index.json").unlink(), "is no pipeline"),
        (lambda folder: (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "vae has no weights"),
        (lambda folder: shutil.rmtree(folder / "text_encoder"), "text_encoder is missing"),
        (lambda folder: (folder / "text_encoder" / "model.safetensors").write_text("version https://git-lfs"), "the address of weights"),
        (lambda folder: (folder / "scheduler" / "scheduler_config.json").write_text("{"), "cannot be read by diffusers"),
    ],
)  # fmt: skip
def test_folders_that_are_no_pipeline_say_what_to_do(folders, how, message, tmp_path):
    shutil.copytree(folders("stable diffusion"), tmp_path / "pipe")
    how(tmp_path / "pipe")
    with pytest.raises(sg.CheckpointError, match=message):
        sg.from_pipeline(tmp_path / "pipe")


def test_what_is_no_pipeline_is_refused(diffusers, folders):
    for wrong in (3, None, torch.nn.Linear(1, 1), diffusers.DDIMScheduler()):
        with pytest.raises(sg.InvalidInputError, match="expected a pipeline of diffusers or its folder"):
            sg.from_pipeline(wrong)
    with pytest.raises(sg.CheckpointError, match="there is no folder"):
        sg.from_pipeline("stabilityai/stable-diffusion")


def test_the_network_of_a_pipeline_alone(folders):
    model = sg.from_diffusers(folders("pixart"))
    assert type(model) is sg.discrete.LearnedVariance and model.space is None
    close(our_run(sg.from_pipeline(folders("pixart")), "pixart", steps=3, seed=0).x,
          our_run(sg.from_pipeline(folders("pixart"))._replace(model=model), "pixart", steps=3, seed=0).x, 0.0)  # fmt: skip


@pytest.mark.parametrize(("name", "part"), [("stable diffusion xl", "vae"), ("latent diffusion", "vqvae")])
def test_the_autoencoder_of_a_pipeline_alone(folders, name, part, tmp_path):
    """From each folder it is the pipeline's space; a model of one's own in it is trained, kept and filled again."""
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    wanted = sg.from_pipeline(folders(name)).space
    for folder in (folders(name), Path(folders(name)) / part):
        space = sg.space_from_diffusers(folder)
        close(space.encode(x), wanted.encode(x), 0.0)
        close(space.decode(wanted.encode(x)), wanted.decode(wanted.encode(x)), 0.0)
    model = sg.Denoiser(sg.nets.UNet(space.channels, channels=8), sg.VPSDE(), space=space)
    sg.fit(model, space.latents(x), steps=1, batch_size=2, seed=0, progress=False, out=tmp_path / "run")
    found = sg.sample(model, 2, steps=2, seed=0).x
    again = sg.load(tmp_path / "run", autoencoder=sg.space_from_diffusers(folder).autoencoder)
    close(again.decode(sg.sample(again, 2, steps=2, seed=0).x), model.decode(found), 0.0)


def test_every_folder_of_a_pipeline_says_which_function_reads_it(folders):
    root = Path(folders("stable diffusion"))
    readers = {root: "from_pipeline", root / "unet": "from_diffusers", root / "vae": "space_from_diffusers"}
    for folder, reader in readers.items():
        with pytest.raises(sg.CheckpointError, match=f"diffusers: sg.{reader}"):
            sg.load(folder)
        getattr(sg, reader)(folder)
        for other in {"from_pipeline", "from_diffusers", "space_from_diffusers"} - {reader}:
            if folder == root:  # a pipeline has a part for either
                getattr(sg, other)(folder)
            else:
                with pytest.raises((sg.CheckpointError, sg.InvalidInputError), match=f"sg.{reader} reads it"):
                    getattr(sg, other)(folder)
    with pytest.raises(sg.CheckpointError, match="it has scheduler_config.json"):
        sg.space_from_diffusers(root / "scheduler")
    with pytest.raises(sg.InvalidInputError, match="expected an autoencoder of diffusers"):
        sg.space_from_diffusers(torch.nn.Linear(1, 1))


def test_a_safety_checker_that_is_missing_is_not_missed(folders, tmp_path):
    shutil.copytree(folders("stable diffusion"), tmp_path / "pipe")
    index = tmp_path / "pipe" / "model_index.json"
    parts = {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    }
    index.write_text(json.dumps({**json.loads(index.read_text()), **parts}))
    assert sg.from_pipeline(tmp_path / "pipe").space is not None
