"""MABWiser under the league's recipes, in an interpreter of its own: JSON in on stdin, JSON out on stdout.

Why a process: MABWiser brings pandas and scikit-learn, and versions of NumPy that are not ours. `make league`
makes the environment from bench/requirements.lock. Nothing of the product is imported here.

In: ``{"environments": [[[rate, ...], ...], ...], "rounds": 2000}``: environments by seed; or ``{"rates":
[rate, ...], "periods": 336, "units": 1000, "runs": 5}``: an hourly scenario. Out: per policy and seed the
regrets and the rounds that took the best arm, or per policy and run regret and share of the best arm.
"""

import json
import sys

import numpy as np
from mabwiser.mab import MAB, LearningPolicy

POLICIES = {
    "thompson": LearningPolicy.ThompsonSampling(),
    "epsilon_greedy": LearningPolicy.EpsilonGreedy(epsilon=0.1),
    "ucb1": LearningPolicy.UCB1(alpha=1.0),
}
EXPLORED_FIRST = 1  # decisions of each arm before the policy decides: MABWiser has to be fitted once


def one_decision_at_a_time(request: dict) -> dict:
    found = {}
    for name, policy in POLICIES.items():
        seeds = []
        for seed, environments in enumerate(request["environments"]):
            rng = np.random.default_rng([seed, 1])
            runs = []
            for k, given in enumerate(environments):
                rates = np.array(given)
                arms = list(range(len(rates)))
                mab = MAB(arms, policy, seed=1000 * seed + k)
                mab.fit(arms, (rng.random(len(arms)) < rates).astype(int).tolist())
                best, regret, hits = int(rates.argmax()), 0.0, ""
                for _ in range(request["rounds"]):
                    arm = mab.predict()
                    mab.partial_fit([arm], [int(rng.random() < rates[arm])])
                    regret += rates[best] - rates[arm]
                    hits += "1" if arm == best else "0"
                runs.append({"regret": regret, "hits": hits})
            seeds.append(runs)
        found[name] = seeds
    return found


def hourly(request: dict) -> dict:
    rates = np.array(request["rates"])
    arms, best = list(range(len(rates))), int(rates.argmax())
    found = {}
    for name, policy in POLICIES.items():
        runs = []
        for run in range(request["runs"]):
            rng = np.random.default_rng([run, 2])
            mab = MAB(arms, policy, seed=run)
            mab.fit(arms, (rng.random(len(arms)) < rates).astype(int).tolist())
            taken = np.zeros(len(arms))
            for _ in range(request["periods"]):
                chosen = np.array([mab.predict() for _ in range(request["units"])])
                mab.partial_fit(
                    chosen.tolist(), (rng.random(len(chosen)) < rates[chosen]).astype(int).tolist()
                )
                taken += np.bincount(chosen, minlength=len(arms))
            lost = float((taken * (rates[best] - rates)).sum())
            runs.append({"regret": lost, "best_share": float(taken[best] / taken.sum())})
        found[name] = runs
    return found


def main() -> None:
    request = json.load(sys.stdin)
    answer = one_decision_at_a_time(request) if "environments" in request else hourly(request)
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
