"""Mask R-CNN as a method: its losses are torchvision's, samples count alike, and it learns."""

from __future__ import annotations

import pytest
import torch
import torchvision

from mvray.errors import DataError, SettingError
from mvray.experiment.contracts import Facts
from mvray.methods import mask_rcnn
from mvray.nn import detectors, small_pyramid

FACTS = Facts(classes=("walk",), height=112, width=112, channels=3, samples=4, frames=1)
pytestmark = pytest.mark.usefixtures("one_thread")


def method_of(seed: int = 0, **settings: object) -> mask_rcnn.MaskRcnn:
    torch.manual_seed(seed)
    return mask_rcnn.Config(**settings).build(FACTS)


def batch_of(samples: int = 3) -> dict[str, torch.Tensor]:
    """Two bright blocks on noise, the second partly behind the first."""
    rand = torch.Generator().manual_seed(3)
    clip = torch.randint(0, 60, (samples, 3, 1, 112, 112), generator=rand)
    masks = torch.zeros(samples, 1, 112, 112, dtype=torch.uint8)
    for i, at in enumerate(torch.randint(0, 30, (samples,), generator=rand).tolist()):
        masks[i, 0, at + 30 : at + 60, at + 20 : at + 70] = 2
        masks[i, 0, at : at + 40, at : at + 30] = 1
    clip[:, 0:1] += 150 * (masks[:, None] == 1)
    clip[:, 1:2] += 150 * (masks[:, None] == 2)
    labels = torch.full((samples, 1, 32), -1)
    labels[:, 0, 0], labels[:, 0, 1] = 0, 1
    return {
        "clip": clip.to(torch.uint8),
        "label": torch.zeros(samples, dtype=torch.int64),
        "draw": torch.arange(samples) * 7919 + 5,
        "masks": masks,
        "mask_labels": labels,
    }


def test_a_picture_alone_has_torchvisions_own_losses() -> None:
    """With the same draw, of one picture at a time."""
    method, batch = method_of().train(), batch_of(1)
    targets = [detectors.target(batch["masks"][0, 0], batch["mask_labels"][0, 0])]
    image = batch["clip"][0, :, 0].float() / 255
    torch.manual_seed(1)
    found = method(batch, "train")
    with torch.random.fork_rng():
        draws = method.model.rpn.fg_bg_sampler, method.model.roi_heads.fg_bg_sampler
        for stage, sampler in zip((method.model.rpn, method.model.roi_heads), draws, strict=True):
            stage.fg_bg_sampler = seeded(sampler, int(batch["draw"][0]))
        expected = method.model([image], targets)
    assert found.keys() == {*expected, "loss_semantic"}
    for name, loss in expected.items():
        assert found[name].item() == pytest.approx(loss.item(), rel=1e-4), name


def test_every_pixels_class_is_learnt_from_too() -> None:
    method, batch = method_of().train(), batch_of(2)
    found = method(batch, "train")["loss_semantic"].item()
    images = [clip[:, 0].float() / 255 for clip in batch["clip"]]
    made, _ = method.model.transform(images)  # 120 pixels on a side, filled up to 128 with zeros
    maps = method.model.semantic(method.model.backbone(made.tensors)["0"])
    scores = torch.nn.functional.interpolate(maps, size=made.tensors.shape[-2:], mode="bilinear")[..., :120, :120]
    classes = torch.nn.functional.interpolate(batch["masks"].float(), size=(120, 120), mode="nearest")[:, 0].long()
    log_p = scores.log_softmax(1).gather(1, classes[:, None])[:, 0]
    assert found == pytest.approx(-log_p.mean().item(), rel=1e-3)


def test_regions_are_pooled_as_by_torchvision() -> None:
    """From the features at 1/4: those of less than 112 x 112 pixels, as all are in small frames."""
    from torchvision.ops import MultiScaleRoIAlign

    from mvray.nn.small_pyramid import RoiPool

    rand = torch.Generator().manual_seed(0)
    features = {name: torch.randn(2, 8, 64 >> at, 80 >> at, generator=rand) for at, name in enumerate("0123")}
    corners = torch.rand(9, 2, generator=rand) * 60
    boxes = torch.cat([corners, corners + 3 + torch.rand(9, 2, generator=rand) * 90], 1)
    given = (features, [boxes[:5], boxes[5:]], [(120, 150), (120, 150)])
    for level, others in (("0", "0"), ("1", "123")):
        torch.testing.assert_close(RoiPool(level, 7, 2)(*given), MultiScaleRoIAlign(list(others), 7, 2)(*given))


def seeded(sampler: object, seed: int) -> object:
    def draw(matched: list[torch.Tensor]) -> object:
        torch.manual_seed(seed)
        return sampler(matched)

    return draw


def test_targets_are_the_instances_that_are_there() -> None:
    batch = batch_of(1)
    masks, labels = batch["masks"][0, 0], batch["mask_labels"][0, 0]
    masks[5, 111] = 7  # one pixel of something
    labels[6] = 1
    target = detectors.target(masks, labels)
    assert target["labels"].tolist() == [1, 2]
    for mask, box, number in zip(target["masks"], target["boxes"].long().tolist(), (1, 2), strict=True):
        assert torch.equal(mask.bool(), masks == number)
        y, x = (masks == number).nonzero().T
        assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]
    empty = detectors.target(torch.zeros(8, 8, dtype=torch.uint8), labels)
    assert (empty["boxes"].shape, empty["masks"].shape) == ((0, 4), (0, 8, 8))


def test_frames_without_instances_give_finite_losses() -> None:
    method, batch = method_of().train(), batch_of(2)
    batch["masks"][1] = 0
    found = method(batch, "train")
    sum(found.values()).backward()
    assert all(loss.isfinite() for loss in found.values())
    batch["masks"][0] = 0
    assert all(loss.isfinite() for loss in method(batch, "train").values())


@pytest.mark.slow
def test_it_learns_to_find_blocks() -> None:
    method, batch = method_of().train(), batch_of(4)
    optimiser = torch.optim.AdamW(method.parameters(), 2e-3)
    for _ in range(120):
        optimiser.zero_grad()
        sum(method(batch, "train").values()).backward()
        optimiser.step()
    with torch.no_grad():
        found = method.eval().predict(batch)
    assert found["union_iou"].min() > 0.85
    assert found["mask_iou"].min() > 0.8
    assert torch.equal(found["instances"], torch.full((4,), 2.0))
    (instances,) = method.segment([batch["clip"][0, :, 0]])
    assert set(instances.labels[instances.scores > 0.5].tolist()) == {0, 1}


def test_pixels_alone_have_the_same_loss_and_wait_with_the_rest() -> None:
    batch = batch_of()
    whole, pixels = method_of().train(), method_of(learns="pixels").train()
    (name,) = found = pixels(batch, "train")
    torch.testing.assert_close(found[name], whole(batch, "train")[name])
    found[name].backward()
    assert all(each.grad is not None for each in pixels.groups("train")[0].parameters)
    waiting = {name.split(".")[1] for name, each in pixels.named_parameters() if not each.requires_grad}
    assert waiting >= {"rpn", "roi_heads"}
    assert len(list(pixels.groups("train")[0].parameters)) < len(list(whole.groups("train")[0].parameters))
    whole.load_state_dict(pixels.state_dict())  # as Train.start_from does


def test_regions_are_the_likeliest_classes_of_pixels() -> None:
    method = method_of(learns="pixels", least_score=0.0).eval()
    image = batch_of(1)["clip"][0, :, 0]
    with torch.no_grad():
        made, _ = method.model.transform([image.float() / 255])
        scores = method.model.semantic(method.model.backbone(made.tensors)["0"])
        finer = torch.nn.functional.interpolate(scores, scale_factor=2, mode="bilinear")[:, :, :120, :120].softmax(1)
        expected_HW = torch.nn.functional.interpolate(finer, (112, 112), mode="bilinear")[0].argmax(0)
        (found,) = method.segment([image])
    assert expected_HW.any()
    again_HW = torch.zeros_like(expected_HW)
    for mask_HW, label, score, box in zip(found.masks, found.labels, found.scores, found.boxes, strict=True):
        again_HW[mask_HW] = label + 1
        y, x = mask_HW.nonzero().T
        assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert 1 / 3 <= score <= 1
    assert torch.equal(again_HW, expected_HW)
    assert torch.equal(found.scores, found.scores.sort(descending=True).values)


def test_a_picture_of_nothing_has_no_regions() -> None:
    method = method_of(learns="pixels").eval()
    torch.nn.init.zeros_(method.model.semantic.weight)
    method.model.semantic.bias.data = torch.tensor([1.0, 0.0, 0.0])
    with torch.no_grad():
        (found,) = method.segment([batch_of(1)["clip"][0, :, 0]])
        assert method.predict(batch_of(2))["union_iou"].tolist() == [0.0, 0.0]
    assert (found.masks.shape, found.boxes.shape, len(found.scores)) == ((0, 112, 112), (0, 4), 0)


def test_two_experts_log_odds_are_added() -> None:
    masks_N1HW, foreground_HW = torch.rand(3, 1, 5, 6) * 0.98 + 0.01, torch.rand(5, 6) * 0.9 + 0.05
    expected = torch.sigmoid(torch.logit(masks_N1HW) + torch.logit(foreground_HW))
    torch.testing.assert_close(small_pyramid.agreed(masks_N1HW, foreground_HW), expected)
    masks_N1HW[0], masks_N1HW[1] = 0, 1
    made = small_pyramid.agreed(masks_N1HW, torch.tensor([0.0, 1.0]).repeat(5, 3))
    assert (made[0] == 0).all()
    assert (made[1] == 1).all()


def test_masks_are_those_of_both_experts() -> None:
    """Where pixels' classes are even odds, masks stay as torchvision has them; where all are nothing, they shrink."""
    method, image = method_of().eval(), batch_of(1)["clip"][0, :, 0]
    torch.nn.init.zeros_(method.model.semantic.weight)
    found = {}
    for name, bias in (("even", [0.0, -0.69314718, -0.69314718]), ("nothing", [50.0, 0.0, 0.0])):
        method.model.semantic.bias.data = torch.tensor(bias)
        with torch.no_grad():
            (found[name],) = method.model([image.float() / 255])
    with torch.no_grad():
        (plain,) = torchvision.models.detection.MaskRCNN.forward(method.model, [image.float() / 255])
    assert len(plain["masks"])
    torch.testing.assert_close(found["even"]["masks"], plain["masks"])
    torch.testing.assert_close(found["even"]["boxes"], plain["boxes"])
    nothing_HW = torch.zeros(image.shape[1:])
    torch.testing.assert_close(found["nothing"]["masks"], small_pyramid.agreed(plain["masks"], nothing_HW))
    assert (found["nothing"]["masks"] >= 0.5).sum() < (plain["masks"] >= 0.5).sum()


def test_iou_of_what_is_not_found_is_0() -> None:
    truth = detectors.target(*(batch_of(1)[name][0, 0] for name in ("masks", "mask_labels")))
    half = truth["masks"][:1].bool().clone()
    half[:, :20] = False
    each, union = detectors.instance_iou({"masks": half, "labels": torch.tensor([1])}, truth)
    assert each == pytest.approx([float(half.sum() / truth["masks"][0].sum()), 0.0])
    assert union == pytest.approx(float(half.sum() / truth["masks"].bool().any(0).sum()))
    nothing = {"masks": half[:0], "labels": torch.zeros(0, dtype=torch.int64)}
    assert detectors.instance_iou(nothing, truth) == ([0.0, 0.0], 0.0)


def test_mistakes() -> None:
    with pytest.raises(SettingError, match=r"There is no Mask R-CNN 'rcnn'; expected one of maskrcnn-small"):
        mask_rcnn.Config(network="rcnn").check(FACTS)
    with pytest.raises(SettingError, match=r"method.least_score is 2; expected 0 to 1"):
        mask_rcnn.Config(least_score=2)
    with pytest.raises(SettingError, match=r"method.learns is 'edges'; expected 'instances' or 'pixels'"):
        mask_rcnn.Config(learns="edges")
    with pytest.raises(SettingError, match=r"resnet50_fpn does not tell pixels' classes; expected maskrcnn-small"):
        mask_rcnn.Config(network="maskrcnn_resnet50_fpn", learns="pixels").check(FACTS)
    with pytest.raises(DataError, match="validation samples have no instance masks"):
        method_of().score({})


@pytest.mark.slow
def test_losses_where_autocast_is_on() -> None:
    """As on GPUs: features are bfloat16 then, and regions are pooled from them in float32."""
    method, batch = method_of().train(), batch_of(2)
    expected = method(batch, "train")["loss_semantic"].item()
    with torch.autocast("cpu", torch.bfloat16):
        found = method(batch, "train")
        method.eval()
        with torch.no_grad():
            made = method.predict(batch)
    assert all(loss.isfinite() for loss in found.values())
    assert found["loss_semantic"].item() == pytest.approx(expected, rel=0.02)
    assert made["mask_iou"].isfinite().all()
