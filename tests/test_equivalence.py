from __future__ import annotations

import pytest
import torch

from utils import equivalence


def test_divergence_by_hand() -> None:
    reference, found = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    measured = equivalence.divergence(reference, found)
    p = torch.tensor([2.0, 0.0]).softmax(0)
    assert measured.max_kl == pytest.approx(float(p[0] * 2 - p[1] * 2), rel=1e-5)
    assert measured.mean_kl == pytest.approx(measured.max_kl / 2)
    assert (measured.max_logit_difference, measured.max_logit, measured.argmax_agreement) == (2, 2, 0.5)
