"""The solver: against every choice there is, monotone, deterministic, and its two questions agree."""

import itertools
import json
import math
import pickle
import random

import pytest

from qexport.assign.allocate import Price, Prices, allocate, cheapest, curve


def some_prices(seed, groups=5, words=4):
    """Bytes and costs as types have them: larger is mostly better, not always, and not always on a hull."""
    random_ = random.Random(seed)
    found = {}
    for number in range(groups):
        size, cost = random_.randint(50, 400), random_.uniform(0.01, 1)
        found[f"t{number}"] = {
            f"w{bits}": Price(
                size * (bits + 2) + random_.randint(0, 40), cost * 4.0**-bits * random_.uniform(0.5, 2)
            )
            for bits in range(words)
        }
    return Prices(found)


def every_choice(prices):
    names = list(prices.groups)
    for words in itertools.product(*(prices.groups[name] for name in names)):
        yield prices.of(dict(zip(names, words, strict=True)))


def budgets(prices):
    choices = list(every_choice(prices))
    low, high = min(each.nbytes for each in choices), max(each.nbytes for each in choices)
    return choices, range(low, high + 1, max(1, (high - low) // 25))


@pytest.mark.parametrize("seed", range(12))
def test_close_to_the_best_of_all_choices_and_inside_the_budget(seed):
    prices = some_prices(seed)
    choices, sizes = budgets(prices)
    points = curve(prices)
    exact = 0
    for budget in sizes:
        found = allocate(prices, budget)
        assert found.price.nbytes <= budget
        best = min(each.kld for each in choices if each.nbytes <= budget)
        # At most the step of the hull that had no room is lost.
        here = max(number for number, point in enumerate(points) if point.nbytes <= budget)
        step = points[here].kld - points[min(here + 1, len(points) - 1)].kld
        assert best <= found.price.kld * (1 + 1e-9)
        assert found.price.kld <= best + step + 1e-12
        exact += math.isclose(found.price.kld, best)
    assert exact >= len(sizes) / 4


@pytest.mark.parametrize("seed", range(12))
def test_more_bytes_are_never_worse(seed):
    prices = some_prices(seed, groups=8)
    low = allocate(prices, 10**9).price.nbytes
    smallest = sum(min(each.nbytes for each in words.values()) for words in prices.groups.values())
    costs = [allocate(prices, budget).price.kld for budget in range(smallest, low + 1, 7)]
    assert costs == sorted(costs, reverse=True)


def test_a_budget_that_nothing_fits_in_has_no_answer():
    prices = some_prices(0)
    smallest = min(each.nbytes for each in every_choice(prices))
    assert allocate(prices, smallest) is not None
    assert allocate(prices, smallest - 1) is None


@pytest.mark.parametrize("seed", range(12))
def test_the_fewest_bytes_for_a_cost(seed):
    prices = some_prices(seed)
    choices, _ = budgets(prices)
    costs = sorted(each.kld for each in choices)
    for wanted in costs[:: len(costs) // 20]:
        found = cheapest(prices, wanted)
        assert found is not None
        assert found.price.kld <= wanted
        assert allocate(prices, found.price.nbytes).price.kld <= wanted
        smaller = allocate(prices, found.price.nbytes - 1)
        assert smaller is None or smaller.price.kld > wanted
    assert cheapest(prices, costs[0] / 2) is None
    assert cheapest(prices, math.inf).price.nbytes == min(each.nbytes for each in choices)


def test_the_curve_is_convex_and_what_the_solver_finds_at_its_points():
    prices = some_prices(3, groups=10)
    points = curve(prices)
    slopes = [(a.kld - b.kld) / (b.nbytes - a.nbytes) for a, b in itertools.pairwise(points)]
    assert slopes == sorted(slopes, reverse=True)
    for point in points:
        assert allocate(prices, point.nbytes).price.kld <= point.kld + 1e-12
    assert points[-1].kld == pytest.approx(
        sum(min(each.kld for each in words.values()) for words in prices.groups.values())
    )


def test_a_word_that_costs_more_and_takes_more_is_never_chosen():
    prices = Prices({"t": {"bad": Price(30, 2.0), "small": Price(10, 3.0), "good": Price(20, 1.0)}})
    assert {allocate(prices, budget).words["t"] for budget in range(10, 40)} == {"small", "good"}


def test_a_word_above_the_hull_fills_what_is_left():
    prices = Prices({"t": {"a": Price(10, 9.0), "b": Price(15, 8.0), "c": Price(20, 0.0)}})
    assert [allocate(prices, budget).words["t"] for budget in (14, 15, 19, 20)] == ["a", "b", "b", "c"]


def test_points_on_a_line_do_not_stop_the_walk():
    prices = Prices({"t": {f"w{bits}": Price(16 * bits, 1 - bits / 8) for bits in range(1, 8)}})
    assert [allocate(prices, 16 * bits).words["t"] for bits in range(1, 8)] == [f"w{b}" for b in range(1, 8)]
    assert allocate(prices, 111).words["t"] == "w6"


def test_ties_go_by_name_whatever_the_order():
    same = {"small": Price(10, 1.0), "large": Price(20, 0.0)}
    for order in itertools.permutations("abc"):
        prices = Prices(dict.fromkeys(order, same))
        assert allocate(prices, 50).words == {"a": "large", "b": "large", "c": "small"}


def test_groups_stand_for_their_tensors_and_prices_are_values():
    prices = Prices({"qk": {"4": Price(8, 1.0)}, "o": {"6": Price(9, 0.5)}}, {"qk": ("q", "k")})
    found = allocate(prices, 17)
    assert prices.types(found.words) == {"q": "4", "k": "4", "o": "6"}
    assert found.price == Price(17, 1.5)
    assert pickle.loads(pickle.dumps(prices)) == prices
    assert json.loads(json.dumps(prices.to_json()))["qk"] == {
        "tensors": ["q", "k"],
        "types": {"4": {"bytes": 8, "kld": 1.0}},
    }
