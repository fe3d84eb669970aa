import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from beit3_vqa.metrics.recall import KS, chance_of_recall, recall_metrics


def by_hand(images, texts, image_of):
    """Sort everything, look at the first k: with no ties there is one order."""
    scores = (images @ texts.T).tolist()
    metrics = {}
    for k in KS:
        hits = [
            any(image_of[t] == i for t in sorted(range(len(texts)), key=lambda t: -row[t])[:k])
            for i, row in enumerate(scores)
        ]
        metrics[f"tr_r{k}"] = 100 * sum(hits) / len(hits)
        found = [image_of[t] in sorted(range(len(images)), key=lambda i: -scores[i][t])[:k] for t in range(len(texts))]
        metrics[f"ir_r{k}"] = 100 * sum(found) / len(found)
    return metrics


@pytest.mark.parametrize("seed", range(4))
def test_recall_equals_sorting_by_hand(seed, monkeypatch):
    monkeypatch.setattr("beit3_vqa.metrics.recall.CHUNK", 7)  # several of them
    generator = torch.Generator().manual_seed(seed)
    image_of = [i for i in range(20) for _ in range(1 + (i * 7 + seed) % 5)]  # one to five captions each
    image_of = [image_of[i] for i in torch.randperm(len(image_of), generator=generator)]
    images = F.normalize(torch.randn(20, 6, generator=generator, dtype=torch.float64), dim=-1)
    noise = torch.randn(len(image_of), 6, generator=generator, dtype=torch.float64)
    texts = F.normalize(images[image_of] + noise, dim=-1)
    metrics = recall_metrics(images, texts, torch.tensor(image_of))
    assert metrics.pop("topk") == metrics  # without ties
    average = metrics.pop("average_score")
    assert metrics == pytest.approx(by_hand(images, texts, image_of))
    assert average == pytest.approx(sum(metrics.values()) / 6)


def test_recall_of_equal_vectors_is_zero():
    metrics = recall_metrics(torch.ones(12, 4), torch.ones(24, 4), torch.arange(12).repeat_interleave(2))
    assert set(metrics.pop("topk").values()) != {0.0}  # upstream's find what happens to come first
    assert set(metrics.values()) == {0.0}
    own = torch.eye(12)
    assert {**recall_metrics(own, own, torch.arange(12)), "topk": 100.0} == dict.fromkeys(metrics | {"topk": 0}, 100.0)


def upstreams(images, texts, image_of):
    """What upstream's script computes: the labels that topk of the whole table of scores names, for each k anew."""
    scores = images @ texts.T
    own = torch.arange(len(images))
    metrics = {}
    for k in KS:
        found = image_of[scores.topk(min(k, len(texts)), dim=1).indices]
        metrics[f"tr_r{k}"] = 100 * (found == own[:, None]).any(dim=1).double().mean().item()
        found = own[scores.topk(min(k, len(images)), dim=0).indices]
        metrics[f"ir_r{k}"] = 100 * (found == image_of[None, :]).any(dim=0).double().mean().item()
    return {**metrics, "average_score": sum(metrics.values()) / 6}


@pytest.mark.parametrize("count", [4, 30, 700])  # topk sorts few and many otherwise
@pytest.mark.parametrize("seed", range(3))
def test_ties_count_as_lost_and_topk_equals_upstreams_recall(seed, count, monkeypatch):
    """Images that share their captions, as Flickr's and COCO's do; small whole numbers, so that equal is equal."""
    monkeypatch.setattr("beit3_vqa.metrics.recall.CHUNK", 16)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(-3, 4, (count, 6), generator=generator).float()
    captions = images[torch.randint(0, max(2, count // 3), (count, 2), generator=generator)]
    image_of = torch.arange(count).repeat_interleave(2)
    texts = torch.where(torch.rand(2 * count, 1, generator=generator) < 0.5, captions.flatten(0, 1), images[image_of])
    metrics = recall_metrics(images, texts, image_of)
    topk = metrics.pop("topk")
    assert topk == pytest.approx(upstreams(images, texts, image_of))
    assert all(metrics[name] <= topk[name] for name in metrics)
    assert count == 4 or metrics["average_score"] < topk["average_score"]


def test_chance_of_recall_equals_the_mean_over_all_orders():
    captions_of = [1, 2, 1]
    image_of = [i for i, count in enumerate(captions_of) for _ in range(count)]
    found = {1: 0.0, 5: 1.0, 10: 1.0}
    orders = list(itertools.permutations(range(4)))
    found[1] = sum(image_of[order[0]] == i for order in orders for i in range(3)) / (3 * len(orders))
    expected = [*found.values(), 1 / 3, 1.0, 1.0]
    assert chance_of_recall(captions_of) == pytest.approx(100 * sum(expected) / 6)
    many = chance_of_recall([5] * 1000)
    assert many == pytest.approx(100 * sum(k / 1000 + 1 - (1 - 5 / 5000) ** (5 * k / 5) for k in KS) / 6, rel=0.02)
    assert math.isfinite(chance_of_recall([5] * 5000))
