"""The band-wise prior: what each part is given; frozen, the integers of the oracle, in strips and tiles."""

import math
import threading

import oracle
import pytest
import torch
import torch.nn.functional as F
from conftest import make_wild, noise
from integers import WORKING, computed, drawn, seeded

import source.bands
from source.bands import LEVELS, BandPrior
from source.distribution import FixedMixture
from source.prior import empty_details, part_of, parts_in_turn
from source.units import SCALES, WEIGHT_SUM_BITS
from utils.arithmetic.crew import crew, in_tiles
from utils.arithmetic.fixed import observe
from utils.arithmetic.integers import MIDDLE
from utils.arithmetic.passes import INPUT_MAX
from utils.arithmetic.polyphase import band_sizes, extend

SIZES = [(6, 8), (5, 7), (3, 3), (1, 6), (7, 1), (2, 1), (1, 1)]


def wild_prior(std=0.3, **options):
    return make_wild(BandPrior(**{"width": 5, "blocks": 1, "components": 2} | options), std)


def frozen_prior(std=0.3, **options):
    """A wild prior, frozen as on what `drawn_level` draws."""
    prior = wild_prior(std, **options)
    with observe(prior) as peaks, torch.no_grad():
        distributions(prior, *drawn_level(16, 16), (16, 16))
    return prior.freeze(peaks)


def drawn_level(height, width, batch=2):
    """A coarse band and details of an image of that size."""
    coarse, *detail = (noise(batch, 3, *size, seed=k) for k, size in enumerate(band_sizes(height, width)))
    return coarse, tuple(detail)


def distributions(prior, coarse, detail, size, level=0):
    """The distribution of each part; generated from its values, the details must come back under the same."""
    found, again = list(parts_in_turn(prior, coarse, level, detail)), []
    filled = empty_details(coarse, size)
    for (part, *_, wanted), (place, distribution, values) in zip(
        found, parts_in_turn(prior, coarse, level, filled, known=False), strict=True
    ):
        assert part == place
        again.append(distribution)
        values.copy_(wanted)
    distributions = [distribution for _, distribution, _ in found]
    assert all(map(torch.equal, filled, detail)) and all(map(same, distributions, again))
    return distributions


def same(a, b):
    return all(map(torch.equal, a, b))


@pytest.fixture
def strips(monkeypatch):
    """Strips of three rows, so that small maps have several."""
    monkeypatch.setattr(source.bands, "STRIP", 3)


# -- what parts are given ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_parts_are_every_plane_once(order):
    prior = wild_prior(order=order)
    for parts in (prior.parts(4), prior.freeze({}).parts(4)):
        planes = [(band, c) for band, channels, _ in parts for c in range(3)[channels]]
        assert sorted(planes) == [(band, c) for band in range(3) for c in range(3)] and len(parts) == 9
        assert [part.band for part in parts] == [band for band in order for _ in range(3)]
    coarse, detail = drawn_level(7, 4)
    assert len(distributions(prior, coarse, detail, (7, 4))) == 9


@pytest.mark.parametrize("height", [1, 2, 3, 4, 6, 7, 200])
def test_strips_are_every_value_once(height, monkeypatch):
    prior = wild_prior(order=(2, 0, 1)).freeze({})
    for strip in (source.bands.STRIP, 3):
        monkeypatch.setattr(source.bands, "STRIP", strip)
        parts, seen = prior.parts(height), torch.zeros(3, 3, height)
        for band, channels, rows in parts:
            seen[band, channels, rows] += 1
            assert 0 < rows.stop - rows.start <= strip
        assert (seen == 1).all() and len(parts) == 9 * -(-height // strip)
        # a strip's channels one after the other, strips from above, band by band
        assert [(2, 0, 1).index(part.band) for part in parts] == sorted(3 * [*range(3)] * -(-height // strip))
        assert [part.channels.start for part in parts] == [0, 1, 2] * (len(parts) // 3)


@pytest.mark.parametrize("frozen", [False, True, "in strips"])
@pytest.mark.parametrize("size", [*SIZES, (13, 4)])
@pytest.mark.parametrize("order, differences", [((0, 1, 2), False), ((2, 0, 1), False), ((0, 1, 2), True)])
@torch.no_grad()
def test_parts_depend_on_those_before_them_and_on_no_later_one(size, order, differences, frozen, request):
    if frozen == "in strips":
        request.getfixturevalue("strips")
    prior = (frozen_prior if frozen else wild_prior)(order=order, differences=differences)
    coarse, detail = drawn_level(*size)
    before, parts = distributions(prior, coarse, detail, size), prior.parts(len(coarse[0, 0]))
    assert len(before) == len(parts)
    for (band, _, rows), distribution in zip(parts, before):
        height, width = band_sizes(*size)[1 + band]
        assert all(f.shape == (2, 2, 1, len(range(height)[rows]), width) for f in distribution)
        assert all(f.double().isfinite().all() for f in distribution)
    for j, (band, channels, rows) in enumerate(parts):
        other = [part.clone() for part in detail]
        changed = other[band][:, channels, rows]
        if not changed.numel():
            continue
        changed += 60 * torch.randn(changed.shape, generator=seeded(j)).round() + 30
        after = distributions(prior, coarse, other, size)
        for p, (a, b) in enumerate(zip(before, after)):
            if p <= j or not a.mean.numel() or (parts[p].band == band and parts[p].rows != rows):
                assert same(a, b), (j, p)
            elif parts[p].rows == rows:
                assert not same(a, b), (j, p)
    after = distributions(prior, 255 - coarse, detail, size)
    assert not any(same(a, b) for a, b in zip(before, after) if a.mean.numel())


@torch.no_grad()
def test_trunk_sees_the_coarse_band_alone_and_once():
    for prior in (wild_prior(), frozen_prior()):
        inputs = []
        hook = prior.trunk.register_forward_pre_hook(lambda module, given: inputs.append(given[0].clone()))  # noqa: B023
        coarse, detail = drawn_level(6, 6)
        for known in (detail, [255 - band for band in detail]):
            list(parts_in_turn(prior, coarse, 0, known))
        hook.remove()
        assert len(inputs) == 2 and torch.equal(*inputs)


@torch.no_grad()
def test_levels_share_all_but_a_bias_and_the_last_serves_all_deeper_ones():
    coarse, detail = drawn_level(6, 6)
    still = BandPrior(5, 1, 2)
    for prior, differ in (
        (still, False),
        (still.freeze({}), False),
        (wild_prior(), True),
        (frozen_prior(), True),
    ):
        levels = [distributions(prior, coarse, detail, (6, 6), level) for level in range(LEVELS + 2)]
        assert all(same(a, b) for other in levels[LEVELS:] for a, b in zip(other, levels[LEVELS - 1]))
        for level in range(1, LEVELS):
            assert differ != all(same(a, b) for a, b in zip(levels[level], levels[0]))
        assert [name for name in prior.state_dict() if "level" in name] == ["level"]


@torch.no_grad()
def test_distributions_do_not_depend_on_the_batch(strips):
    prior, (coarse, detail) = frozen_prior(), drawn_level(13, 9, 3)
    whole = distributions(prior, coarse, detail, (13, 9))
    for i in range(3):
        one = distributions(prior, coarse[i : i + 1], [band[i : i + 1] for band in detail], (13, 9))
        assert all(same(a, [f[:, i : i + 1] for f in b]) for a, b in zip(one, whole))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@torch.no_grad()
def test_predictions_start_as_the_neighbours_in_the_coarse_band(order):
    """Exact on a plane, whatever the other bands hold; but for borders, which are replicated."""
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(14.0), indexing="ij")
    image = torch.stack([40 + 4 * rows + 8 * columns, -6 * columns, 2 * rows - columns])[None]
    coarse, known = image[..., ::2, ::2], noise(1, 9, 6, 7)
    for index, band in zip(order, BandPrior(5, 1, 1, order).bands):
        row, column = ((0, 1), (1, 0), (1, 1))[index]
        wanted = image[..., row::2, column::2]
        planes = torch.cat([coarse, known], 1)[:, : band.base.in_channels]
        base = band.base(planes)
        assert torch.equal(base[..., :-1, :-1], wanted[..., :-1, :-1])
        fixed = band.freeze({}).base((4 * planes).to(torch.int16).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        assert torch.equal(fixed[..., :-1, :-1], 256 * wanted[..., :-1, :-1])


# -- frozen --------------------------------------------------------------------------------------------------


def samples(band, size):
    """A band as the networks see it: around 0, in quarters, as large as the coarse band."""
    quarters = 4 * (extend(band, size, MIDDLE) - MIDDLE).clamp(-INPUT_MAX, INPUT_MAX)
    return quarters.long().clamp(-(2**15), 2**15 - 1).permute(0, 2, 3, 1)


def means_of_nearest(coarse, index):
    """(B, H, W, C) -> of two samples side by side, of two below each other, or of four."""
    padded = F.pad(coarse.double().movedim(-1, 1), (0, 1, 0, 1), mode="replicate")
    right, below = index != 1, index != 0
    height, width = coarse.shape[1:3]
    shifts = [(y, x) for y in range(1 + below) for x in range(1 + right)]
    total = sum(padded[..., y : y + height, x : x + width] for y, x in shifts)
    return (total / len(shifts)).movedim(1, -1).long()


def plain_blocks(blocks, h):
    for block in blocks:
        h = oracle.conv(block.last, oracle.conv(block.wide, h), onto=h)
    return h


def plain_fields(prior, coarse, detail, level):
    """(band, channel) -> the fields of its mixture, layer by layer of the whole map."""
    size, fields = coarse.shape[-2:], {}
    known, near = samples(coarse, size), torch.zeros(size + (3,), dtype=torch.long)
    h = oracle.compand(oracle.wide(prior.enter, known)) + prior.level[min(level, LEVELS - 1)].long()
    trunk = plain_blocks(prior.trunk, h)
    for index, band in zip(prior.order, prior.bands):
        own, base = samples(detail[index], size), oracle.wide(band.base, known)
        if prior.differences:
            near = means_of_nearest(known[..., :3], index)
            height, width = detail[index].shape[-2:]
            own = (own - near).clamp(-(2**14), 2**14)[:, :height, :width]
            own = extend(own.movedim(-1, 1), size, 0).movedim(1, -1)
        expected = torch.div(base + 32, 64, rounding_mode="floor")
        entered = oracle.compand(oracle.wide(band.enter, torch.cat([known, expected], -1)))
        h = plain_blocks(band.blocks, oracle.conv(band.trunk, trunk, onto=entered))
        hidden = oracle.conv(band.hidden, h)
        for c, out in enumerate(band.out):
            layers = (band.beside[c - 1], band.linear[c - 1]) if c else None
            q, mean = oracle.look_beside(base, hidden, own, 0, c, layers, out)
            mean = mean + 64 * near[..., c]
            outputs = oracle.scaled(oracle.sums(q, out.weight) + out.bias.long(), out.exponent)
            fields[index, c] = oracle.mixture_fields(outputs.clamp(-(2**15) + 1, 2**15 - 1), mean)
        known = torch.cat([known, own], -1)
    return fields


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("size", [*SIZES, (14, 11), (27, 30)])
@pytest.mark.parametrize(
    "options",
    [
        *({}, {"blocks": 0, "components": 1}, {"blocks": 2, "order": (2, 0, 1)}),
        *({"differences": True}, {"differences": True, "order": (2, 0, 1)}),
    ],
)
@torch.no_grad()
def test_distributions_are_the_composition_of_plain_layers(compiled, size, options, strips):
    prior = frozen_prior(**options)
    coarse, detail = drawn_level(*size)
    # an image of noise, one of coefficients as wild as couplings make them
    coarse[1], detail = (
        40 * coarse[1] - 5000,
        [band * torch.tensor([1.0, 40])[:, None, None, None] for band in detail],
    )
    for level in (0, 3):
        wanted = plain_fields(prior, coarse, detail, level)
        with computed(None, compiled):
            found = distributions(prior, coarse, detail, size, level)
        for (band, channels, rows), distribution in zip(prior.parts(len(coarse[0, 0])), found):
            height, width = band_sizes(*size)[1 + band]
            assert isinstance(distribution, FixedMixture)
            for field, whole in zip(distribution, wanted[band, channels.start]):
                assert torch.equal(field.long(), whole[..., :height, :width][..., rows, :])


@pytest.mark.parametrize("way", [*dict.fromkeys([*WORKING[False], *WORKING[True]])])
@torch.no_grad()
def test_every_way_gives_the_same_distributions(way):
    prior = frozen_prior(width=24)
    level = drawn_level(16, 13)
    whole = distributions(prior, *level, (16, 13))
    with computed(way):
        assert all(map(same, distributions(prior, *level, (16, 13)), whole))


@pytest.mark.parametrize("blocks", [0, 2])
@torch.no_grad()
def test_tiles_make_no_difference(blocks, monkeypatch):
    prior, size = frozen_prior(0.2, blocks=blocks), (27, 30)
    coarse, detail = drawn_level(*size)
    whole = distributions(prior, coarse, detail, size)
    for side in (2, 5, 13):
        monkeypatch.setitem(in_tiles.__init__.__kwdefaults__, "side", side)
        assert all(map(same, distributions(prior, coarse, detail, size), whole))


@pytest.mark.parametrize("height", [6, 7, 12, 13])
@torch.no_grad()
def test_strips_make_no_difference(height, monkeypatch):
    """Those of the next strip begun before its turn, or not."""
    prior, size = frozen_prior(), (height, 9)
    coarse, detail = drawn_level(*size)
    found = distributions(prior, coarse, detail, size)
    whole = {(part.band, part.channels.start): d for part, d in zip(prior.parts(64), found)}
    for strip, ahead in ((3, 0), (3, 1), (1, 1), (2, 5)):
        monkeypatch.setattr(source.bands, "STRIP", strip)
        monkeypatch.setattr(source.bands, "AHEAD", ahead)
        found = distributions(prior, coarse, detail, size)
        for (band, channels, rows), distribution in zip(prior.parts(len(coarse[0, 0])), found):
            wanted = whole[band, channels.start]
            assert same(distribution, [field[..., rows, :] for field in wanted])


@torch.no_grad()
def test_a_strip_waits_for_the_rows_it_sees(monkeypatch):
    """Not for all of the band before; and where the details are known, for nothing."""
    monkeypatch.setattr(source.bands, "STRIP", 3)
    prior, size = frozen_prior(), (24, 9)
    coarse, detail = drawn_level(*size)
    for known, ahead in ((None, 1), (detail, 1), (None, 3)):
        monkeypatch.setattr(source.bands, "AHEAD", ahead)
        given, before = prior(coarse, 0, known), []
        for index, part in enumerate(parts := prior.parts(12)):
            given(before)
            before.append(part_of(detail, part))
            if not part.channels.start:
                for later in range(index + 3, min(index + 3 * (1 + ahead), len(parts)), 3):
                    seen = parts[later].rows.stop + 3 <= part.rows.start
                    assert (later in given.begun) == (
                        known is not None or parts[later].band == part.band or seen
                    )
    assert any(p.rows.stop + 3 <= parts[9].rows.start for p in parts[12:15])


@torch.no_grad()
def test_threads_make_no_difference(strips, monkeypatch):
    monkeypatch.setitem(in_tiles.__init__.__kwdefaults__, "side", 4)
    monkeypatch.setattr("utils.arithmetic.crew.FEW_PIXELS", 1)
    prior, size = frozen_prior(), (20, 17)
    coarse, detail = drawn_level(*size)
    whole, seen, all_here = distributions(prior, coarse, detail, size), set(), threading.Event()

    def notice(*_):
        seen.add(threading.current_thread().name)
        if len(seen) == 3:
            all_here.set()
        all_here.wait(60)  # or one may have done it all before another begins

    prior.trunk.register_forward_pre_hook(notice)
    torch.set_num_threads(3)
    try:
        with crew():
            for _ in range(3):
                assert all(map(same, distributions(prior, coarse, detail, size), whole))
    finally:
        torch.set_num_threads(1)
    here = threading.current_thread().name  # who waits helps
    assert seen > {here} and all(name.startswith("crew") for name in seen - {here})


@torch.no_grad()
def test_freezing_keeps_the_coders_ranges_with_wild_weights():
    for std in (1e-3, 0.5, 1.0):
        prior = wild_prior(std).freeze({})
        for weight, mean, scale in distributions(prior, *drawn_level(9, 6), (9, 6)):
            assert weight.min() >= 0 and (weight.amax(0) == 1 << WEIGHT_SUM_BITS).all()
            assert 0 <= scale.min() and scale.max() < SCALES and mean.long().abs().max() < 1 << 31


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@torch.no_grad()
def test_weights_that_cannot_be_frozen(value):
    prior = BandPrior(5, 1, 2)
    for name, p in prior.named_parameters():
        if name == "level" and math.isfinite(value):
            continue  # harmless: it is clamped
        before = p.clone()
        p.view(-1)[0] = value
        with pytest.raises(ValueError, match="not finite|too large") as caught:
            prior.freeze({})
        assert "\n" not in str(caught.value)
        p.copy_(before)
    prior.freeze({})


def test_freezing_leaves_the_prior_as_it_is_and_gives_integers():
    prior = wild_prior()
    before = {name: value.clone() for name, value in prior.state_dict().items()}
    fixed = prior.freeze({})
    assert all(torch.equal(value, before[name]) for name, value in prior.state_dict().items())
    assert not list(fixed.parameters()) and not any(b.is_floating_point() for b in fixed.buffers())
    # a level's bias in units of 2^-6
    assert torch.equal(fixed.level, torch.round(prior.level[..., 0, 0] * 64).to(torch.int16))


@torch.no_grad()
def test_a_level_s_bias_is_clamped_to_what_16_bits_add():
    prior = BandPrior(5, 0, 1)
    prior.level.fill_(1e6)
    fixed = prior.freeze({})
    assert (fixed.level == source.bands.LEVEL_MAX).all()
    fixed.check()
    coarse, detail = drawn_level(5, 5)
    coarse = coarse * 1000
    wanted = plain_fields(fixed, coarse, detail, 1)
    found = distributions(fixed, coarse, detail, (5, 5), 1)
    for (band, c), distribution in zip(wanted, found):
        height, width = band_sizes(5, 5)[1 + band]
        assert all(
            torch.equal(a.long(), b[..., :height, :width]) for a, b in zip(distribution, wanted[band, c])
        )


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (lambda prior: prior.bands[1].trunk.shift.add_(1), "read the trunk each in its own units"),
        (lambda prior: prior.bands[0].beside[1].shift.add_(1), "in other units than theirs"),
        (lambda prior: prior.level.view(-1)[3].fill_(2**14 + 1), "a level's bias is too large"),
        (lambda prior: prior.level.view(-1)[3].fill_(-(2**15)), "a level's bias is too large"),
    ],
)
def test_forged_integers_are_refused(forge, message):
    prior = wild_prior().freeze({})
    prior.check()
    forge(prior)
    with pytest.raises(ValueError, match=message):
        prior.check()


def test_samples_of_means_are_the_nearest_quarters():
    means = drawn((1, 3, 4, 5), -(2**20), 2**20, dtype=torch.int32)
    found = source.bands.to_samples(means).double() / 4
    assert (found - means / 256).abs().max() <= 1 / 8
    halves = torch.tensor([32, -32, 31, -33], dtype=torch.int32)
    assert source.bands.to_samples(halves).tolist() == [1, 0, 0, -1]
