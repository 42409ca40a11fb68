"""Auto-augmentation: the tables, the magnitudes, how often what is applied, and the pixels."""

import hashlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from mindcv_reparam.data.auto_augment import AugMix, AutoAugment, Operation, RandAugment, Style, parse_auto_augment
from mindcv_reparam.data.picture import Picture
from mindcv_reparam.errors import UserError

STYLE = Style(fill=(10, 20, 30), resampling=Image.Resampling.BICUBIC)


def rng(*key):
    return np.random.default_rng(key)


@pytest.fixture
def image():
    return Image.fromarray(rng(0).integers(20, 200, (24, 36, 3)).astype(np.uint8))


def augmented(policy, image, seed=0):
    """Pixels of ``image`` after a policy or an operation."""
    return policy(Picture.of(image), rng(seed), STYLE).pixels()


def applied(policy, image, count):
    """Names of the operations on the image in ``count`` runs, and how many each run applied."""
    names, lengths = Counter(), Counter()

    class Recorder(Operation):
        def argument(self, rng):
            operation, value = super().argument(rng)
            run.append(self.name)
            return operation, value

    recorders = tuple(Recorder(**vars(operation)) for operation in policy.operations)
    policy = RandAugment(recorders, policy.layers, policy.weights)
    for seed in range(count):
        run: list[str] = []
        augmented(policy, image, seed)
        names.update(run)
        lengths[len(run)] += 1
    return names, lengths


# Digests of timm's tables: sha256 of repr([[(name, probability, magnitude), …], …]).
@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("v0", "054827ef41f4b999"),
        ("v0r", "e488d5372447a172"),
        ("original", "91812f33898cbcb5"),
        ("originalr", "6cca53b7e2da232f"),
        ("autoaug", "91812f33898cbcb5"),
        ("autoaugr", "6cca53b7e2da232f"),
        ("3a", "5069a97840bd1bd2"),
    ],
)
def test_policies_are_timms(name, digest):
    table = [[(o.name, o.probability, o.magnitude) for o in sub] for sub in parse_auto_augment(name).subpolicies]
    assert hashlib.sha256(repr(table).encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize(
    ("text", "deviation"), [("original", 0.0), ("original-mstd0.5", 0.5), ("autoaug", 0.5), ("autoaug-mstd0", 0.0)]
)
def test_deviation_of_auto_augment(text, deviation):
    assert {o.deviation for sub in parse_auto_augment(text).subpolicies for o in sub} == {deviation}


def test_rand_augment_strings():
    policy = parse_auto_augment("rand-m9-mstd0.5-inc1")
    assert isinstance(policy, RandAugment)
    assert [o.name for o in policy.operations] == [
        "AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd",
        "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing", "ShearX", "ShearY",
        "TranslateXRel", "TranslateYRel",
    ]  # fmt: skip
    assert {(o.probability, o.magnitude, o.deviation, o.maximum) for o in policy.operations} == {(0.5, 9, 0.5, 10)}
    assert policy.layers == 2
    plain = parse_auto_augment("rand-m7-n3-p0.8-mstd101-mmax15-inc0")
    assert (plain.layers, plain.operations[4].name) == (3, "Posterize")
    assert {(o.probability, o.magnitude, o.deviation, o.maximum) for o in plain.operations} == {
        (0.8, 7, float("inf"), 15)
    }


def test_mindcv_rand_augment_has_its_own_set_default_and_weights():
    policy = parse_auto_augment("randaug-m7")
    assert "SolarizeAdd" not in {o.name for o in policy.operations}
    assert (len(policy.operations), {o.deviation for o in policy.operations}) == (14, {0.5})
    weighted = parse_auto_augment("randaug-m7-w0-inc1")
    weights = dict(zip((o.name for o in weighted.operations), weighted.weights))
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["Rotate"] / weights["SharpnessIncreasing"] == pytest.approx(12)
    assert weights["Invert"] == 0


def test_other_strings():
    mixed = parse_auto_augment("augmix-m5-w4-d-1")
    assert isinstance(mixed, AugMix)
    assert (mixed.width, mixed.depth, mixed.operations[0].magnitude) == (4, -1, 5)
    assert len(parse_auto_augment("trivialaugwide").operations) == 14
    assert isinstance(parse_auto_augment("3a"), AutoAugment)
    assert len(parse_auto_augment("rand-t3aw").operations) == 14


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("autoag", "nearest is 'autoaug'"),
        ("randaugm7", "nearest is 'randaug'"),
        ("rand-x5", "'x5' is no option of 'rand', which takes m, n, p"),
        ("autoaug-m9", "'m9' is no option of 'autoaug', which takes mstd"),
        ("rand-n2.5", "n takes a whole number"),
        ("rand-m", "'m' is no option"),
        ("rand-m-3", "must not be negative"),
        ("rand-tbest", "unknown set tbest"),
        ("randaug-w1", "w0"),
        ("randaug-w0-n14", "n14 is more"),
        ("", "unknown policy ''"),
    ],
)
def test_bad_strings_are_named(text, message):
    with pytest.raises(UserError, match=message):
        parse_auto_augment(text)


# All that can be drawn at magnitude 9, computed from the references' level functions by hand.
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("Rotate", {-27.0, 27.0}),
        ("ShearX", {-0.27, 0.27}),
        ("TranslateYRel", {-0.405, 0.405}),
        ("Posterize", {3}),
        ("PosterizeIncreasing", {1}),
        ("PosterizeOriginal", {7}),
        ("Solarize", {230}),
        ("SolarizeIncreasing", {26}),
        ("SolarizeAdd", {99}),
        ("Color", {1.72}),
        ("ContrastIncreasing", {0.19, 1.81}),
        ("Desaturate", {0.05}),
        ("GaussianBlur", {1.81}),
    ],
)
def test_arguments_at_magnitude_nine(name, values):
    operation = Operation(name, 1.0, 9)
    drawn = {round(operation.argument(rng(seed))[1], 9) for seed in range(40)}
    assert drawn == values


def test_magnitude_is_normal_and_clipped():
    operation = Operation("Rotate", 1.0, 9, deviation=0.5)
    drawn = np.array([operation.argument(rng(seed))[1] for seed in range(8000)]) / 3
    size = np.abs(drawn)
    assert size.max() == pytest.approx(10)
    assert (size > 9.999).mean() == pytest.approx(0.0228, abs=0.006)  # P(z > 2)
    assert np.median(size) == pytest.approx(9, abs=0.03)
    assert np.quantile(size, 0.1587) == pytest.approx(8.5, abs=0.04)
    assert (drawn > 0).mean() == pytest.approx(0.5, abs=0.02)


def test_infinite_deviation_is_uniform_and_mmax_widens_the_clip():
    uniform = Operation("Rotate", 1.0, 8, deviation=float("inf"))
    size = np.abs([uniform.argument(rng(seed))[1] for seed in range(4000)]) / 3
    np.testing.assert_allclose(np.quantile(size, [0.1, 0.5, 0.9]), [0.8, 4.0, 7.2], atol=0.2)
    assert abs(Operation("Rotate", 1.0, 15, maximum=12).argument(rng(0))[1]) == pytest.approx(36)


def test_rand_augment_draws_operations_uniformly_and_applies_half():
    policy = parse_auto_augment("rand-m9-mstd0.5-inc1")
    names, lengths = applied(policy, Image.new("RGB", (8, 8), (90, 100, 110)), 6000)
    assert len(names) == 15
    counts = np.array(list(names.values()))
    assert counts.sum() == pytest.approx(6000, abs=220)  # two draws, each applied with probability 1/2
    expected = counts.sum() / 15
    assert ((counts - expected) ** 2 / expected).sum() < 36.1  # χ² of 14 degrees of freedom, p = 0.001
    np.testing.assert_allclose([lengths[k] / 6000 for k in range(3)], [0.25, 0.5, 0.25], atol=0.025)


def test_weighted_rand_augment_follows_its_weights():
    names, _ = applied(parse_auto_augment("randaug-w0-n1-p1"), Image.new("RGB", (8, 8)), 3000)
    assert "Invert" not in names
    assert names["Rotate"] / 3000 == pytest.approx(0.3, abs=0.035)


def test_auto_augment_draws_sub_policies_uniformly(image):
    policy = AutoAugment(tuple((Operation("SolarizeAdd", 1.0, magnitude),) for magnitude in (1, 4, 7, 10)))
    outcomes = Counter(augmented(policy, image, seed).tobytes() for seed in range(2000))
    assert len(outcomes) == 4
    np.testing.assert_allclose(list(outcomes.values()), 500, atol=90)


def test_probability_of_an_operation(image):
    operation = Operation("Invert", 0.3, 5)
    picture = Picture.of(image)
    changed = sum(operation(picture, rng(seed), STYLE) is not picture for seed in range(2000))
    assert changed / 2000 == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize(
    ("name", "magnitude", "reference"),
    [
        ("Equalize", 5, ImageOps.equalize),
        ("AutoContrast", 5, ImageOps.autocontrast),
        ("Invert", 5, ImageOps.invert),
        ("Solarize", 5, lambda image: ImageOps.solarize(image, 128)),
        ("PosterizeOriginal", 5, lambda image: ImageOps.posterize(image, 6)),
        ("PosterizeOriginal", 10, lambda image: image),
        ("Posterize", 0, lambda image: Image.new("RGB", image.size)),
        ("SolarizeAdd", 10, lambda image: image.point(lambda v: min(255, v + 110) if v < 128 else v)),
        ("Color", 9, lambda image: ImageEnhance.Color(image).enhance(1.72)),
        ("Contrast", 9, lambda image: ImageEnhance.Contrast(image).enhance(1.72)),
        ("Brightness", 9, lambda image: ImageEnhance.Brightness(image).enhance(1.72)),
        ("Sharpness", 9, lambda image: ImageEnhance.Sharpness(image).enhance(1.72)),
        ("Desaturate", 10, lambda image: ImageEnhance.Color(image).enhance(0.0)),
        ("GaussianBlur", 10, lambda image: image.filter(ImageFilter.GaussianBlur(2.0))),
    ],
)
def test_photometric_operations_are_pillows(name, magnitude, reference, image):
    np.testing.assert_array_equal(augmented(Operation(name, 1.0, magnitude), image), np.asarray(reference(image)))


@pytest.mark.parametrize("magnitude", [0, 1, 5, 6, 10])
@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
def test_enhancing_at_any_magnitude_is_pillows(name, magnitude, image):
    factor = 0.1 + magnitude * 0.18
    expected = getattr(ImageEnhance, name)(image).enhance(factor)
    np.testing.assert_array_equal(augmented(Operation(name, 1.0, magnitude), image), np.asarray(expected))


@pytest.mark.parametrize("resampling", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
@pytest.mark.parametrize("magnitude", [0, 0.3, 9, 10])
def test_geometric_operations_are_pillows(magnitude, resampling, image):
    style = Style(STYLE.fill, resampling)

    def affine(*matrix):
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resampling, fillcolor=STYLE.fill)

    size = magnitude / 10
    references = {
        "Rotate": lambda sign: image.rotate(sign * size * 30.0, resampling, fillcolor=STYLE.fill),
        "ShearX": lambda sign: affine(1, sign * size * 0.3, 0, 0, 1, 0),
        "ShearY": lambda sign: affine(1, 0, 0, sign * size * 0.3, 1, 0),
        "TranslateXRel": lambda sign: affine(1, 0, sign * size * 0.45 * image.width, 0, 1, 0),
        "TranslateYRel": lambda sign: affine(1, 0, 0, 0, 1, sign * size * 0.45 * image.height),
    }
    for name, reference in references.items():
        operation = Operation(name, 1.0, magnitude)
        outputs = {operation(Picture.of(image), rng(seed), style).pixels().tobytes() for seed in range(8)}
        assert outputs == {reference(sign).tobytes() for sign in (-1, 1)}


def test_operations_on_values_follow_one_another_as_on_pixels(image):
    """The tables of a picture are composed, not applied: every operation must see what the ones before it left."""
    names = ("Solarize", "AutoContrast", "Equalize", "Contrast", "Posterize", "Equalize", "Color", "Invert", "ShearX")
    picture = Picture.of(image)
    for name in names:
        operation = Operation(name, 1.0, 7)
        expected = operation(Picture(picture.pixels()), rng(1), STYLE).pixels()
        picture = operation(picture, rng(1), STYLE)
        np.testing.assert_array_equal(picture.pixels(), expected)


@pytest.mark.parametrize("values", [(7,), (7, 8), (0, 255), (3, 3, 3, 90, 200)])
def test_equalize_and_autocontrast_on_few_values(values):
    image = Image.fromarray(np.resize(np.array(values, dtype=np.uint8), (9, 11, 3)))
    for name, reference in (("Equalize", ImageOps.equalize), ("AutoContrast", ImageOps.autocontrast)):
        np.testing.assert_array_equal(augmented(Operation(name, 1.0, 5), image), np.asarray(reference(image)))


def test_geometric_operations_uncover_the_fill_colour(image):
    pixels = np.asarray(image)
    shift = round(0.45 * 10 / 10 * image.width)  # whole pixels: 16.2 rounds, so compare away from the seam
    outputs = [augmented(Operation("TranslateXRel", 1.0, 10), image, seed) for seed in range(8)]
    left = next(output for output in outputs if (output[:, -1] == STYLE.fill).all())
    right = next(output for output in outputs if (output[:, 0] == STYLE.fill).all())
    assert (left[:, -shift + 2 :] == STYLE.fill).all()
    assert (right[:, : shift - 2] == STYLE.fill).all()
    assert np.abs(left[:, :10].astype(int) - pixels[:, shift : shift + 10]).mean() < 20  # moved, not scaled
    turned = augmented(Operation("Rotate", 1.0, 10), image)
    assert (turned[0, 0] == STYLE.fill).all()
    sheared = augmented(Operation("ShearX", 1.0, 10), image)
    assert (sheared[-1, [0, -1]] == STYLE.fill).all(axis=-1).any()
    np.testing.assert_allclose(sheared[0, 2:-2].astype(int), pixels[0, 2:-2], atol=40)


@pytest.mark.parametrize("text", ["augmix-m5", "trivialaugwide", "3a", "rand-m9-mstd0.5-inc1", "v0r", "autoaugr"])
def test_policies_keep_size_and_are_reproducible(text, image):
    policy = parse_auto_augment(text)
    outputs = [augmented(policy, image, seed) for seed in (1, 2, 3, 4, 5, 1)]
    assert {(output.shape, output.dtype.name) for output in outputs} == {((image.height, image.width, 3), "uint8")}
    assert outputs[0].tobytes() == outputs[-1].tobytes()
    assert len({output.tobytes() for output in outputs}) > 1
