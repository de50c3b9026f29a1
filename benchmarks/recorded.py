"""Is a rebuilt sdegen the same to the bit? Twelve calls and more, recorded with one version and compared with another.

    python benchmarks/recorded.py --write before.pt      # with the old version
    python benchmarks/recorded.py --against before.pt    # with the new one, on the same machine

Bits are a machine's own: a recording is made and compared on one machine, and is never committed. What starts from the
prior is given its start here, so that the record speaks of solvers and not of where samples begin.
"""

from __future__ import annotations

import argparse
import warnings

import torch

import sdegen as sg


def network() -> sg.Denoiser:
    """A network with random weights, measured data and a mean that is not 0."""
    torch.manual_seed(7)
    net = sg.nets.MLP(2, hidden=16, layers=2, embedding=8)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return sg.Denoiser(net, sg.VPSDE(), data_mean=torch.tensor([0.4, -1.0]), data_std=torch.tensor([0.5, 1.5]))


def ring(sde: sg.SDE) -> sg.MixtureModel:
    return sg.MixtureModel(sg.data.toys.ring(8), sde)


def start(model: sg.ScoreModel, n: int = 24, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return (z * float(model.sde.sigma(model.sde.t_max))).to(dtype)


def points(n: int = 24, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype) * 0.7


def recorded(solution) -> dict[str, torch.Tensor]:
    names = ("x", "ts", "xs", "nfe", "accepted", "rejected", "status", "t", "nats", "stderr", "latent", "log_prob")
    found = {name: getattr(solution, name) for name in names if torch.is_tensor(getattr(solution, name, None))}
    return {**found, "calls": torch.tensor(getattr(solution, "calls", -1))}


def calls() -> dict[str, dict[str, torch.Tensor]]:
    net, vp, edm = network(), ring(sg.VPSDE()), ring(sg.EDMSDE())
    done: dict[str, dict[str, torch.Tensor]] = {}

    def sample(name: str, model: sg.ScoreModel, dtype: torch.dtype = torch.float32, **how) -> None:
        x = start(model, dtype=dtype)
        done[name] = recorded(sg.sample(model, x.shape, x_init=x, dtype=dtype, seed=11, **how))

    sample("auto, 8 steps, network", net, steps=8)
    sample("auto, tolerance, network", net, rtol=1e-3)
    sample("auto, 12 steps, exact score", vp, steps=12, save="all")
    sample("auto, tolerance, exact score", vp, dtype=torch.float64, rtol=1e-5, save="all")
    sample("reverse SDE by tolerance", vp, eta=1.0, rtol=3e-2)
    sample("SDE-DPM++ 2M", edm, solver="dpm++2m-sde", steps=20)
    sample("UniPC-3", net, solver="unipc3", steps=10)
    sample("Heun of Karras", edm, solver="heun", steps=9)
    sample("dopri5 by tolerance", net, solver="dopri5", rtol=1e-3)
    sample("DOP853 of scipy", vp, solver="scipy:DOP853", rtol=1e-5)
    sample("Gaussian start", vp, solver=sg.make_solver("adams", start="gaussian"), rtol=1e-3)
    sample("SRA1 by tolerance", edm, solver="sra1", rtol=5e-2)
    sample("samples with their log-density", net, rtol=1e-3, return_log_prob=True)
    sample("predictor and corrector", vp, solver="predictor-corrector", steps=15)
    done["encode"] = recorded(sg.encode(net, points(), rtol=1e-3))
    done["log_prob by tolerance"] = recorded(sg.log_prob(net, points(), rtol=1e-3, seed=2))
    done["log_prob by probes on a grid"] = recorded(
        sg.log_prob(vp, points(dtype=torch.float64), steps=20, divergence="rademacher", probes=3, seed=2)
    )
    done["solve in the model's own time"] = recorded(
        sg.solve(sg.ProbabilityFlow(net), start(net), solver="rk4", steps=10, save=[0.5, 0.2, 0.05])
    )
    done["ancestral sampling"] = recorded(
        sg.discrete.ddpm(ring(sg.TabulatedVPSDE(sg.discrete.betas("linear", 50))), (16, 2), seed=4)
    )
    done["losses"] = {"loss": sg.dsm_loss(net, points(), seed=1).detach()}
    trained = network()
    history = sg.fit(trained, points(256), steps=20, batch_size=32, seed=9, progress=False)
    weights = torch.cat([p.detach().flatten() for p in trained.parameters()])
    done["fit, 20 steps"] = {"loss": torch.as_tensor(history.loss), "weights": weights}
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", metavar="FILE", help="record into FILE")
    parser.add_argument("--against", metavar="FILE", help="compare with what FILE records")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = calls()
    if args.write:
        torch.save(found, args.write)
        print(f"{len(found)} calls recorded in {args.write}")
    if args.against:
        before, changed = torch.load(args.against), 0
        for name, values in before.items():
            now = found[name]
            other = [
                key
                for key, value in values.items()
                if key in now
                and not (value.shape == now[key].shape and torch.equal(value.nan_to_num(), now[key].nan_to_num()))
            ]
            far = [
                f"{float((values[k] - now[k]).double().abs().max()):.1e}"
                if values[k].shape == now[k].shape
                else "shape"
                for k in other
            ]
            print(f"{'differs' if other else 'same':8} {name}", *(f"{k} ({d})" for k, d in zip(other, far)), sep="  ")
            changed += bool(other)
        print(f"{len(before) - changed} of {len(before)} calls are the same to the bit")
        raise SystemExit(changed > 0)


if __name__ == "__main__":
    main()
