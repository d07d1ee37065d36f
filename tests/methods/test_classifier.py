"""The classifier: what it hides, what it loses, what it says, against the papers written again."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from mvray.errors import SettingError
from mvray.experiment.contracts import Facts
from mvray.methods import classifier
from mvray.nn import cam, draws

FACTS = Facts(classes=("ada", "ben", "cleo"), height=73, width=52, channels=1, samples=8)
SMALL = "alexnet-small"


def method_of(seed: int = 0, **settings: object) -> classifier.Classifier:
    torch.manual_seed(seed)
    return classifier.Config(network=SMALL, **settings).build(FACTS)


def batch_of(samples: int = 8, channels: int = 1) -> dict[str, torch.Tensor]:
    rand = torch.Generator().manual_seed(5)
    size = (samples, channels, FACTS.height, FACTS.width)
    return {
        "image": torch.randint(0, 256, size, dtype=torch.uint8, generator=rand),
        "label": torch.arange(samples) % 3,
        "index": torch.arange(samples),
        "draw": torch.arange(samples) * 7919,
        "map": torch.rand(samples, 8, 5, generator=rand),
    }


def loss_of(method: classifier.Classifier, batch: dict[str, torch.Tensor], seed: int = 1) -> torch.Tensor:
    torch.manual_seed(seed)  # for dropout
    return method(batch, "train")["cross_entropy"]


def test_loss_is_cross_entropy() -> None:
    method, batch = method_of(label_smoothing=0.1).eval(), batch_of()
    with torch.no_grad():
        scores_BK = method.class_scores(batch["image"]).double().numpy()
    log_p = scores_BK - np.log(np.exp(scores_BK).sum(1, keepdims=True))
    target = np.full((8, 3), 0.1 / 3) + 0.9 * np.eye(3)[batch["label"].numpy()]
    assert loss_of(method, batch).item() == pytest.approx(-(target * log_p).sum(1).mean(), rel=1e-5)


def test_pictures_are_normalised_and_grey_is_repeated() -> None:
    method, grey_BCHW = method_of().eval(), batch_of()["image"]
    pixels = grey_BCHW.double() / 255
    mean, std = method.config.mean, method.config.std
    three = torch.cat([(pixels - m) / s for m, s in zip(mean, std, strict=True)], dim=1)
    with torch.no_grad():
        expected = method.network(three.float())
        torch.testing.assert_close(method.class_scores(grey_BCHW), expected, rtol=1e-4, atol=1e-5)
        colour = method.class_scores(grey_BCHW.repeat(1, 3, 1, 1))
        assert torch.equal(method.class_scores(grey_BCHW), colour)


@pytest.mark.parametrize("hide", ["random", "attention"])
def test_probability_0_is_plain_training_exactly(hide: str) -> None:
    batch = batch_of()
    plain = loss_of(method_of(), batch)
    assert torch.equal(loss_of(method_of(hide=hide, probability=0), batch), plain)
    assert not torch.equal(loss_of(method_of(hide=hide, probability=1), batch), plain)


@pytest.mark.parametrize("hide", ["nothing", "random", "attention"])
def test_nothing_is_hidden_outside_training(hide: str) -> None:
    batch = batch_of()
    plain, hiding = method_of().eval(), method_of(hide=hide, probability=1).eval()
    assert torch.equal(loss_of(hiding, batch), loss_of(plain, batch))
    with torch.no_grad():
        assert torch.equal(hiding.predict(batch)["scores"], plain.predict(batch)["scores"])


def test_attention_hides_the_map_from_the_threshold_on() -> None:
    method, batch = method_of(hide="attention", threshold=0.7, fill="constant", constant=9, probability=0.5), batch_of()
    large = torch.nn.functional.interpolate(batch["map"][:, None], (73, 52), mode="bilinear")
    expected = torch.where(large >= 0.7, 9, batch["image"].int())
    assert torch.equal(method.config.hidden(batch).int(), expected)
    assert torch.equal(method.config.hidden({**batch, "label": 2 - batch["label"]}), method.config.hidden(batch))
    whole = torch.nn.functional.interpolate(batch["map"][:, None], (73, 52), mode="bilinear")[:, 0]
    assert torch.equal(method.config.hidden({**batch, "map": whole}), method.config.hidden(batch))


def test_hidden_is_what_training_sees() -> None:
    batch = batch_of()
    hiding = method_of(hide="attention", probability=1)
    expected = loss_of(method_of(), {**batch, "image": hiding.config.hidden(batch)})
    assert torch.equal(loss_of(hiding, batch), expected)
    assert torch.equal(method_of().config.hidden(batch), batch["image"])


def test_share_of_hidden_pictures_is_the_probability() -> None:
    small = {"image": torch.zeros(1000, 1, 12, 10, dtype=torch.uint8), "draw": torch.arange(1000)}
    method = method_of(hide="random", probability=0.3, fill="constant", constant=255)
    seen = []
    method.network = torch.nn.Flatten()
    method.network.register_forward_hook(lambda _m, inputs, _out: seen.append(inputs[0]))
    method({**small, "label": torch.zeros(1000, dtype=torch.int64)}, "train")
    red_BHW = seen[0][:, 0]
    share = (red_BHW.amax((1, 2)) > red_BHW.min()).float().mean().item()
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 1000) ** 0.5


def test_a_new_draw_hides_something_else_and_the_same_draw_the_same() -> None:
    method, batch = method_of(hide="random", fill="noise"), batch_of()
    other = {**batch, "draw": batch["draw"] + 1}
    assert torch.equal(method.config.hidden(batch), method.config.hidden(batch))
    assert not torch.equal(method.config.hidden(batch), method.config.hidden(other))
    assert not torch.equal(draws.uniform(batch["draw"], 0), draws.uniform(other["draw"], 0))


def test_same_seed_same_loss() -> None:
    batch = batch_of()
    first, again = (loss_of(method_of(seed=3, hide="attention"), batch) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, loss_of(method_of(seed=4, hide="attention"), batch))


@pytest.mark.parametrize("hide", ["nothing", "random", "attention"])
def test_overfits_one_batch(hide: str) -> None:
    method, batch = method_of(hide=hide, probability=1, dropout=0.0), batch_of()
    optimizer = torch.optim.Adam(method.parameters(), 1e-3)
    for _ in range(40):
        optimizer.zero_grad()
        loss = method(batch, "train")["cross_entropy"]
        loss.backward()
        assert all(each.grad is not None and each.grad.isfinite().all() for each in method.parameters())
        optimizer.step()
    assert loss < 0.1
    seen = {**batch, "image": method.config.hidden(batch)}  # the draws stay the same here, and so do the hidden parts
    with torch.no_grad():
        assert torch.equal(method.eval().predict(seen)["predicted"], batch["label"])


def test_predictions_are_probabilities_in_the_batchs_order() -> None:
    method, batch = method_of().eval(), batch_of()
    with torch.no_grad():
        columns = method.predict(batch)
        turned = method.predict({name: value.flip(0) for name, value in batch.items()})
    torch.testing.assert_close(columns["scores"].sum(1), torch.ones(8))
    assert torch.equal(columns["predicted"], columns["scores"].argmax(1))
    torch.testing.assert_close(turned["scores"].flip(0), columns["scores"])


def test_score() -> None:
    scores = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.5, 0.25, 0.25], [0.1, 0.0, 0.9]], np.float32)
    columns = {"label": np.array([0, 0, 0, 1]), "predicted": scores.argmax(1), "scores": scores}
    found = method_of().score(columns)
    assert found["accuracy"] == pytest.approx(2 / 4)
    assert found["accuracy_per_class_mean"] == pytest.approx((2 / 3 + 0) / 2)
    smallest = np.finfo(np.float32).tiny  # a probability that is 0 in float32 costs this much, not infinity
    assert found["loss"] == pytest.approx(-np.log([0.7, 0.3, 0.5, smallest]).mean())


def test_grad_cam_finds_its_layer() -> None:
    method, batch = method_of().eval(), batch_of()
    assert method.attention_layer == "network.features.16"
    maps_BHW, scores_BK = cam.grad_cam(method.class_scores, method, method.attention_layer, batch["image"])
    assert maps_BHW.shape == (8, 8, 5)
    assert scores_BK.shape == (8, 3)


def test_gradients_reach_float_pictures() -> None:
    images_BCHW = batch_of()["image"].float().requires_grad_()
    method_of().eval().class_scores(images_BCHW).sum().backward()
    assert images_BCHW.grad is not None
    assert images_BCHW.grad.abs().max() > 0


def test_settings() -> None:
    assert classifier.Config().needs == ()
    assert classifier.Config(hide="random").needs == ()
    assert classifier.Config(hide="attention").needs == ("map",)
    rates = [each.p for each in method_of(dropout=0.1).modules() if isinstance(each, torch.nn.Dropout)]
    assert rates == [0.1, 0.1]
    state = method_of().state_dict()
    assert all(name.startswith("network.") for name in state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hide": "faces"}, "method.hide is 'faces'; expected one of nothing, random, attention."),
        ({"fill": "grey"}, "method.fill is 'grey'; expected one of mean, constant, noise, blur."),
        ({"probability": 1.5}, "method.probability is 1.5; expected 0 to 1."),
        ({"threshold": 0.0}, "method.threshold is 0.0; expected above 0, up to 1."),
        ({"constant": 256}, "method.constant is 256; expected 0 to 255."),
        ({"area": (0.5, 0.2)}, r"method.area is \(0.5, 0.2\); expected"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        classifier.Config(**settings)


def test_naming_a_method_does_not_touch_torch() -> None:
    program = """
import sys, types

class Untouched(types.ModuleType):
    def __getattr__(self, name):
        raise AssertionError(f"torch.{name} is touched at import")

sys.modules["torch"] = Untouched("torch")
import mvray.methods.classifier, mvray.generators.gradcam
mvray.methods.classifier.Config(hide="attention")
print(*{name.split(".")[0] for name in sys.modules} & {"torchvision", "scipy", "ray", "mlflow", "matplotlib"})
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []
