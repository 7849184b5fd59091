"""Gradients taken in parts, cut, and looked through for zeros."""

import torch

from align3d.gradients import clipped, dead, in_parts, with_slopes

X = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
WEIGHT = torch.linspace(0.5, 2, 5, dtype=torch.float64)


def function(part, rows):
    return WEIGHT[rows] * (part**3).flatten(1).sum(1)


def test_parts_are_the_whole():
    want = X.clone().requires_grad_()
    (function(want, slice(None)) * torch.arange(5)).sum().backward()
    for size in (0, 1, 2, 5, 9):
        x = X.clone().requires_grad_()
        seen = []
        values, slopes = in_parts(lambda part, rows: (seen.append(len(part)), function(part, rows))[1], x, size)  # noqa: B023
        assert max(seen) == (min(size, 5) or 5) and sum(seen) == 5 and not values.requires_grad
        torch.testing.assert_close(values, function(X, slice(None)))
        (with_slopes(x, values, slopes) * torch.arange(5)).sum().backward()
        torch.testing.assert_close(x.grad, want.grad)
        assert (x.grad[1:] != 0).all()


def test_nothing_is_taken_where_nothing_is_wanted():
    assert in_parts(function, X, 2)[1] is None
    with torch.no_grad():
        assert in_parts(function, X.clone().requires_grad_(), 2)[1] is None
    assert in_parts(lambda part, rows: WEIGHT[rows], X.clone().requires_grad_(), 2)[1] is None
    _, slopes = in_parts(lambda part, rows: function(part, rows) if rows.start else WEIGHT[rows], X.requires_grad_(), 2)
    assert dead(slopes).tolist() == [True, True, False, False, False]


def test_a_row_is_cut_to_the_limit_whatever_its_size():
    lengths = torch.tensor([1e-40, 0.5, 2.0, 1e15, 0.0])
    unit = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(1))
    rows = (unit / unit.flatten(1).norm(dim=1)[:, None, None]).double() * lengths[:, None, None].double()
    rows[3] *= 1e20  # whose square overflows
    rows = rows.float()
    cut = clipped(rows, 1.0)
    torch.testing.assert_close(cut.flatten(1).norm(dim=1)[1:], torch.tensor([0.5, 1, 1, 0]))
    assert torch.equal(cut[:2], rows[:2]) and torch.equal(cut[4], rows[4])
    assert dead(cut).tolist() == [False] * 4 + [True] and cut.dtype == torch.float32
