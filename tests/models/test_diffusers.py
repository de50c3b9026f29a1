"""diffusers models as ScoreModels and back: the same outputs, the same runs, clear refusals."""

from __future__ import annotations

import functools
import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import sdegen as sg
from sdegen import discrete

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:numpy"),  # diffusers' use of it
]

F64 = torch.float64


@pytest.fixture(scope="session")
def diffusers():
    return pytest.importorskip("diffusers")


def unet(diffusers, out: int = 1, **config) -> nn.Module:
    """A small UNet2DModel with random weights, its last layer too (diffusers starts no layer at zero)."""
    torch.manual_seed(0)
    small = {
        "sample_size": 8, "in_channels": 1, "out_channels": out, "block_out_channels": (8, 16), "layers_per_block": 1,
        "norm_num_groups": 4, "attention_head_dim": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    return diffusers.UNet2DModel(**(small | config)).eval()


def images(n: int = 3) -> Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def close(a: Tensor, b: Tensor, tolerance: float) -> None:
    """Equal to `tolerance` of the largest element, which is at least 1."""
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, float(b.abs().max())), check_dtype=False)


# ---- outputs


TABLED = [
    "DDPMScheduler", "DDIMScheduler", "DDIMInverseScheduler", "DDIMParallelScheduler", "PNDMScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler", "UniPCMultistepScheduler",
    "DEISMultistepScheduler", "SASolverScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", TABLED)
def test_any_scheduler_with_betas_tells_the_process(diffusers, name, kind):
    if name == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    for schedule in ("linear", "scaled_linear"):
        scheduler = getattr(diffusers, name)(
            beta_start=1e-3, beta_end=0.1, beta_schedule=schedule, num_train_timesteps=50, prediction_type=kind
        )
        net = unet(diffusers)
        model, x = sg.from_diffusers(net, scheduler), images()
        assert isinstance(model, sg.Denoiser) and model.event_shape == (1, 8, 8) and model.net.unet is net
        bar = torch.cumprod(1 - scheduler.betas.double(), 0)
        close(model.sde.alpha(model.sde.nodes) ** 2, bar, 1e-12)
        with torch.no_grad():
            for integer in (0, 7, 49):
                output, t = net(x, integer).sample, (integer + 1) / 50
                belief = model(x, t)
                close(belief.noise if kind == "epsilon" else belief.v, output, 1e-5)
                alpha, sigma = bar[integer].sqrt(), (1 - bar[integer]).sqrt()
                x0 = (x - sigma * output) / alpha if kind == "epsilon" else alpha * x - sigma * output
                close(belief.x0, x0, 1e-5)


def test_every_scheduler_of_diffusers_tells_its_own_noise_or_is_refused(diffusers):
    """What is left of the data at its nodes, also where a scheduler changes that after its betas were made."""
    net, compared = unet(diffusers), set()
    for name in sorted(n for n in dir(diffusers) if n.endswith("Scheduler")):
        try:
            scheduler = getattr(diffusers, name)()
        except (TypeError, ImportError):  # needs arguments, or another package
            continue
        try:
            model = sg.from_diffusers(net, scheduler)
        except sg.InvalidInputError:
            continue
        if isinstance(model.sde, sg.TabulatedVPSDE):
            close(model.sde.alpha(model.sde.nodes) ** 2, scheduler.alphas_cumprod.double(), 1e-6)
            compared.add(name)
    assert len(compared) >= len(TABLED) and "CogVideoXDDIMScheduler" in compared


def test_sample_prediction_and_times_per_sample(diffusers):
    net, x = unet(diffusers), images(4)
    model = sg.from_diffusers(net, diffusers.DDPMScheduler(prediction_type="sample"))
    t = torch.tensor([1, 500, 999, 1000])
    with torch.no_grad():
        close(model(x, t / 1000).x0, net(x, t - 1).sample, 1e-5)


@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"]
)
def test_flow_schedulers_tell_the_straight_path(diffusers, name):
    words = {} if name.startswith("Flow") else {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    net, x = unet(diffusers), images()
    model = sg.from_diffusers(net, getattr(diffusers, name)(**words))
    with torch.no_grad():
        for t in (1.0, 0.4, 1e-3):
            output = net(x, 1000 * t).sample
            belief = model(x, t)
            close(belief.velocity, output, 1e-5)  # noise - x0
            close(belief.x0, x - t * output, 1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_the_flow_schedulers_run(diffusers, shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(12)
    net, x = unet(diffusers), images()
    model = sg.from_diffusers(net, scheduler)
    ours = sg.sample(model, 3, solver="euler", steps=scheduler.sigmas.double(), x_init=x).x
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t.expand(3)).sample, t, x).prev_sample
    close(ours, x, 1e-5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    "name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "CosineDPMSolverMultistepScheduler"]
)
def test_karras_schedulers_tell_the_preconditioning(diffusers, name, kind):
    scheduler = getattr(diffusers, name)(prediction_type=kind)
    if name.startswith("Cosine") and kind == "epsilon":
        pytest.skip("not this scheduler's")
    net, x = unet(diffusers), images()
    model = sg.from_diffusers(net, scheduler)
    with torch.no_grad():
        for sigma in (0.4, 1.0, 30.0):
            s = torch.tensor([sigma])
            output = net(scheduler.precondition_inputs(x * sigma, s), scheduler.precondition_noise(s)).sample
            close(model(x * sigma, sigma).x0, scheduler.precondition_outputs(x * sigma, output, s), 1e-5)


def test_euler_is_the_karras_schedulers_run(diffusers):
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    scheduler.set_timesteps(12)
    net, x = unet(diffusers), images() * 80
    model = sg.from_diffusers(net, scheduler)
    ours = sg.sample(model, 3, solver="euler", steps=scheduler.sigmas.double(), x_init=x).x
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    close(ours, x, 1e-5)


def test_score_sde_ve_is_a_score_told_sigma(diffusers):
    net = unet(diffusers, time_embedding_type="fourier")
    model, x = sg.from_diffusers(net, diffusers.ScoreSdeVeScheduler(sigma_min=0.01, sigma_max=50.0)), images()
    with torch.no_grad():
        for t in (0.1, 0.5, 1.0):
            sigma = 0.01 * 5000**t
            close(model.score(x, t), net(x, torch.full((3,), sigma)).sample, 1e-4)


# ---- runs


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(("spacing", "s"), [("leading", 10), ("leading", 7), ("trailing", 8)])
def test_ddim_is_the_pipelines_run(diffusers, kind, spacing, s):
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=200, beta_start=5e-4, beta_end=0.1, prediction_type=kind, timestep_spacing=spacing,
        clip_sample=False,
    )  # fmt: skip
    scheduler.set_timesteps(s)
    net, x = unet(diffusers), images()
    model = sg.from_diffusers(net, scheduler)
    ours = sg.sample(model, 3, solver="ddim", steps=discrete.spaced(model, s, spacing=spacing), x_init=x).x
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t).sample, t, x).prev_sample
    close(ours, x, 1e-5)


def test_ddim_is_the_ddim_pipeline(diffusers):
    """diffusers.DDIMPipeline itself; it clips the result to [-1, 1] and moves it to [0, 1]."""
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=100, beta_end=0.1, clip_sample=False)
    net = unet(diffusers)
    pipeline = diffusers.DDIMPipeline(net, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(2, generator=torch.Generator().manual_seed(3), num_inference_steps=10, output_type="np").images
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    model = sg.from_diffusers(net, scheduler)
    ours = discrete.ddim(model, 2, steps=10, x_init=x).x
    close((ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1), torch.as_tensor(theirs), 1e-5)


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_zero_terminal_snr_starts_at_the_last_node(diffusers, kind):
    scheduler = diffusers.DDIMScheduler(
        prediction_type=kind, rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False
    )
    scheduler.set_timesteps(10)
    net, x = unet(diffusers), images()
    model = sg.from_diffusers(net, scheduler)
    assert model.sde.alpha(1.0) == 0
    ours = discrete.ddim(model, 3, steps=10, spacing="trailing", x_init=x).x
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t).sample, t, x).prev_sample
    close(ours, x, 1e-5)
    assert torch.isfinite(sg.sample(model, 2, rtol=1e-2, seed=0).x).all()


def test_what_a_scheduler_keeps_at_the_last_node_is_kept(diffusers):
    """Some stop short of zero signal, by hand: alpha_bar_N = 2^-24."""
    words = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    scheduler = diffusers.EulerDiscreteScheduler(num_train_timesteps=50, beta_end=0.2, **words)
    model = sg.from_diffusers(unet(diffusers), scheduler)
    assert float(model.sde.alpha(1.0)) == pytest.approx(2**-12, rel=1e-3)  # alpha_bar before it is a float32
    # of 1000 nodes the last but one has less than that left: there the signal would rise again, so it is 0
    model = sg.from_diffusers(unet(diffusers), diffusers.EulerDiscreteScheduler(**words))
    assert model.sde.alpha(1.0) == 0


def test_noise_predictions_have_no_start_without_signal(diffusers):
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True)
    model = sg.from_diffusers(unet(diffusers), scheduler)
    with pytest.raises(sg.InvalidInputError, match="says nothing about the data there"):
        discrete.ddim(model, 1, steps=10, spacing="trailing")


# ---- conditions


def test_class_labels_are_a_condition(diffusers):
    net, x = unet(diffusers, num_class_embeds=5), images(4)
    model = sg.from_diffusers(net, diffusers.DDPMScheduler(num_train_timesteps=50))
    labels = torch.tensor([0, 1, 4, 4])
    with torch.no_grad():
        wanted = net(x, 24, class_labels=labels).sample
        close(model(x, 0.5, class_labels=labels).noise, wanted, 1e-5)
        close(model(x[2:], 0.5, class_labels=4).noise, wanted[2:], 1e-5)  # one for all
    whole = sg.sample(model, 4, solver="ddim", steps=5, seed=0, class_labels=labels)
    parts = sg.sample(model, 4, solver="ddim", steps=5, seed=0, class_labels=labels, batch_size=3)
    close(whole.x, parts.x, 1e-5)
    assert not torch.allclose(whole.x, sg.sample(model, 4, solver="ddim", steps=5, seed=0, class_labels=0).x)
    with pytest.raises(sg.InvalidInputError, match="class_labels"):
        sg.sample(model, 4, solver="ddim", steps=5)
    with pytest.raises(sg.InvalidInputError, match="unknown to the model"):
        sg.sample(model, 4, solver="ddim", steps=5, labels=labels)


def test_an_unconditional_network_takes_no_labels(diffusers):
    model = sg.from_diffusers(unet(diffusers), diffusers.DDPMScheduler())
    with pytest.raises(sg.InvalidInputError, match="it takes none"):
        sg.sample(model, 2, solver="ddim", steps=5, class_labels=1)


# ---- learned variance, half precision


def test_twice_the_channels_is_a_learned_variance(diffusers, monkeypatch):
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=20, beta_end=0.4, variance_type="learned_range", clip_sample=False
    )
    net, x = unet(diffusers, out=2), images()
    model = sg.from_diffusers(net, scheduler)
    assert isinstance(model, discrete.LearnedVariance)
    ts = discrete.spaced(model)
    ours = discrete.ddpm(model, 3, variance="learned", x_init=x, seed=5).x
    draws = iter([sg.Noise(5).standard(a, b, x) for a, b in zip(ts, ts[1:], strict=False)])
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, **k: next(draws))
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t).sample, t, x).prev_sample
    close(ours, x, 1e-5)
    back = sg.to_scheduler(model)
    assert type(back) is diffusers.DDPMScheduler and back.config["variance_type"] == "learned_range"


def test_half_precision_networks_hear_the_exact_integer(diffusers):
    """999 has no place in bfloat16: it would become 1000."""
    net = unet(diffusers).to(torch.bfloat16)
    heard = []
    net.time_proj.register_forward_pre_hook(lambda module, args: heard.append(args[0]))
    model = sg.from_diffusers(net, diffusers.DDPMScheduler())
    x = images()
    with torch.no_grad():
        output = model(x, 1.0).noise
    assert output.dtype == torch.float32 and heard[0].tolist() == [999.0] * 3


# ---- the way back


def test_to_scheduler_gives_the_scheduler_of_a_table(diffusers):
    for kind in ("epsilon", "sample", "v_prediction"):
        for words in ({}, {"beta_schedule": "squaredcos_cap_v2"}, {"rescale_betas_zero_snr": True}):
            scheduler = diffusers.DDIMScheduler(prediction_type=kind, **words)
            if kind == "epsilon" and words.get("rescale_betas_zero_snr"):
                continue
            back = sg.to_scheduler(sg.from_diffusers(unet(diffusers), scheduler))
            assert type(back) is diffusers.DDIMScheduler and back.config["prediction_type"] == kind
            close(back.alphas_cumprod, scheduler.alphas_cumprod, 1e-7)
            assert not back.config["clip_sample"]


def test_a_model_made_here_samples_in_diffusers(diffusers):
    """A Denoiser that counts, its network wrapped as diffusers calls it, run by the scheduler that it gets."""
    net = sg.nets.UNet(1, channels=8, multipliers=(1, 2))
    torch.nn.init.normal_(net.out.weight, std=0.05)
    sde = sg.TabulatedVPSDE(discrete.betas("cosine", 100))
    model = sg.Denoiser(net, sde, parametrization=discrete.counting("v"))
    scheduler = sg.to_scheduler(model)
    scheduler.set_timesteps(10)
    x = images()
    ours = discrete.ddim(model, (3, 1, 8, 8), steps=10, x_init=x).x
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t.float().expand(3)), t, x).prev_sample
    close(ours, x, 1e-4)


def test_to_scheduler_gives_flow_karras_and_ve_schedulers(diffusers):
    flow = sg.to_scheduler(
        sg.from_diffusers(unet(diffusers), diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=500))
    )
    assert type(flow) is diffusers.FlowMatchEulerDiscreteScheduler and flow.config["num_train_timesteps"] == 500
    for kind in ("epsilon", "v_prediction"):
        given = diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=40.0, sigma_data=0.7, prediction_type=kind)
        back = sg.to_scheduler(sg.from_diffusers(unet(diffusers), given))
        assert type(back) is diffusers.EDMEulerScheduler
        for word in ("sigma_min", "sigma_max", "sigma_data", "prediction_type"):
            assert back.config[word] == pytest.approx(given.config[word])
    own = sg.Denoiser(sg.nets.MLP(2), sg.EDMSDE(0.01, 40.0), data_std=0.7)
    assert sg.to_scheduler(own).config["prediction_type"] == "epsilon"
    given = diffusers.ScoreSdeVeScheduler(sigma_min=0.02, sigma_max=30.0)
    back = sg.to_scheduler(sg.from_diffusers(unet(diffusers, time_embedding_type="fourier"), given))
    assert type(back) is diffusers.ScoreSdeVeScheduler
    assert back.config["sigma_min"] == pytest.approx(0.02) and back.config["sigma_max"] == pytest.approx(30.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sg.MixtureModel(sg.GaussianMixture([[0.0]], std=1.0), sg.VPSDE()), "no network"),
        (lambda: sg.Denoiser(sg.nets.MLP(2), sg.VPSDE()), "no scheduler for VPSDE"),
        (lambda: sg.Denoiser(sg.nets.MLP(2), sg.SubVPSDE(), parametrization="noise"), "no scheduler for SubVPSDE"),
        (lambda: sg.Denoiser(sg.nets.MLP(2), sg.TabulatedVPSDE([0.1, 0.2, 0.3]), parametrization="noise"), "counting"),
        (lambda: sg.Denoiser(sg.nets.MLP(2), sg.TabulatedVPSDE([0.1, 0.2, 0.3])), "predicts nothing"),
        (lambda: sg.Denoiser(sg.nets.MLP(2), sg.TabulatedVESDE([0.1, 0.2, 0.9]), parametrization="x0"), "no scheduler"),
        (lambda: sg.Denoiser(sg.nets.MLP(2), sg.LinearPathSDE(), parametrization="velocity"), "N t"),
        (lambda: sg.Denoiser(sg.nets.MLP(2), sg.EDMSDE(), parametrization="x0"), "Karras"),
        (lambda: sg.Denoiser(sg.nets.MLP(2), sg.VESDE(), parametrization="score"), "sigma"),
    ],
)  # fmt: skip
def test_models_without_a_scheduler_say_why(diffusers, make, message):
    with pytest.raises(sg.InvalidInputError, match=message):
        sg.to_scheduler(make())


# ---- on disk


@pytest.mark.parametrize("of", ["noise", "v", "edm"])
def test_a_network_that_counts_is_named_and_saved(of, tmp_path):
    sde = sg.TabulatedVPSDE(discrete.betas("linear", 100))
    named = sg.Denoiser(sg.nets.MLP(2), sde, parametrization=f"counting-{of}", data_std=0.5)
    torch.nn.init.normal_(list(named.net.parameters())[-1])
    kind = discrete.counting(sg.models.parametrization.parametrization(of, 0.5))
    same = sg.Denoiser(named.net, sde, parametrization=kind, data_std=0.5)
    sg.save(named, tmp_path / "model")
    back = sg.load(tmp_path / "model")
    x, t = torch.randn(5, 2), sde.nodes[[0, 3, 50, 98, 99]]
    with torch.no_grad():
        for model in (same, back):
            close(model(x, t).x0, named(x, t).x0, 0.0)
    with pytest.raises(sg.InvalidInputError, match="any of them after 'counting-'"):
        sg.Denoiser(named.net, sde, parametrization="counting-eps")


def test_a_learned_variance_is_saved_and_trained_in_a_folder(tmp_path):
    def made():
        torch.manual_seed(2)
        net = sg.nets.UNet(1, channels=8, out_channels=2)
        sde = sg.TabulatedVPSDE(discrete.betas("cosine", 30))
        return discrete.LearnedVariance(net, sde, parametrization="counting-noise")

    def train(model, steps, out):
        loss = functools.partial(discrete.hybrid_loss, levels=17)
        sg.fit(model, data, steps=steps, loss=loss, batch_size=4, seed=0, out=out, device="cpu", schedule="constant")
        return model

    data = (images(8) / 4).clamp(-1, 1).mul(8).round() / 8
    model = train(made(), 3, tmp_path / "run")
    for back in (sg.load(tmp_path / "run", device="cpu"), train(made(), 3, tmp_path / "run")):  # read, and resumed
        assert type(back) is discrete.LearnedVariance
        ours, theirs = (discrete.ddpm(m, 2, steps=5, variance="learned", seed=0).x for m in (model, back))
        close(ours, theirs, 0.0)
    plain = sg.Denoiser(sg.nets.UNet(1, channels=8), model.sde, parametrization="counting-noise")
    with pytest.raises(
        sg.IncompatibleCheckpointError, match="class: got Denoiser, expected the checkpoint's 'LearnedVariance'"
    ):
        sg.fit(plain, data, steps=3, batch_size=4, seed=0, out=tmp_path / "run", device="cpu", schedule="constant")


SAVED = {
    "betas": lambda d: d.DDPMScheduler(num_train_timesteps=50),
    "flow": lambda d: d.FlowMatchEulerDiscreteScheduler(num_train_timesteps=500, shift=3.0),
    "flow, other solver": lambda d: d.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    "Karras": lambda d: d.EDMEulerScheduler(),
    "VE": lambda d: d.ScoreSdeVeScheduler(),
    "continuous": lambda d: d.EulerDiscreteScheduler(prediction_type="v_prediction", timestep_type="continuous"),
}


@pytest.mark.parametrize("scheduler", SAVED)
def test_a_model_of_diffusers_is_saved(diffusers, scheduler, tmp_path):
    """And read with the user's own network, whose weights are replaced."""
    model = sg.from_diffusers(unet(diffusers), SAVED[scheduler](diffusers))
    sg.save(model, tmp_path / "model")
    torch.manual_seed(7)
    other = unet(diffusers, layers_per_block=1)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    back = sg.load(tmp_path / "model", net=other)
    assert back.parametrization == model.parametrization
    with torch.no_grad():
        close(back(images(), 0.5).x0, model(images(), 0.5).x0, 0.0)


# ---- refusals


@pytest.mark.parametrize(
    ("net", "scheduler", "message"),
    [
        (lambda d: nn.Linear(2, 2), lambda d: d.DDPMScheduler(), "expected a network of diffusers, such as UNet2DModel"),
        (lambda d: unet(d), lambda d: d.DDPMPipeline, "expected the diffusers scheduler that the network"),
        (lambda d: unet(d), lambda d: None, "expected the diffusers scheduler that the network"),
        (lambda d: unet(d, out=3), lambda d: d.DDPMScheduler(), "1 channels and returns 3"),
        (lambda d: unet(d), lambda d: d.LCMScheduler(), "distilled"),
        (lambda d: unet(d), lambda d: d.CMStochasticIterativeScheduler(), "distilled"),
        (lambda d: unet(d), lambda d: d.IPNDMScheduler(), "neither betas nor"),
        (lambda d: unet(d), lambda d: d.DPMSolverMultistepScheduler(prediction_type="flow_prediction"), "no meaning"),
        (lambda d: unet(d), lambda d: d.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas"),
        (lambda d: unet(d), lambda d: d.EDMDPMSolverMultistepScheduler(prediction_type="sample"), "no meaning"),
    ],
)  # fmt: skip
def test_what_cannot_be_adapted_says_why(diffusers, net, scheduler, message):
    with pytest.raises(sg.InvalidInputError, match=message):
        sg.from_diffusers(net(diffusers), scheduler(diffusers))


def test_importing_sdegen_does_not_import_diffusers():
    code = "import sys, sdegen; sdegen.from_diffusers, sdegen.discrete.ddpm; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_wrapped_networks_need_no_adapter():
    """A noise predictor with integer times is a Denoiser; so is Karras' D(x, sigma)."""

    class Predictor(nn.Module):
        def forward(self, x, t):
            return torch.sin(x + t[:, None])

    model = sg.Denoiser(Predictor(), sg.TabulatedVPSDE(discrete.betas()), parametrization=discrete.counting("noise"))
    x = torch.randn(3, 2, dtype=F64)
    close(model(x, 0.4).noise, torch.sin(x + 399), 1e-12)
    karras = sg.Denoiser(Predictor(), sg.EDMSDE(), parametrization="x0")
    close(karras(x, 3.0).x0, torch.sin(x + 3), 1e-12)
    assert math.isclose(float(karras.sde.t_max), 80)
