"""The behaviour artifact: transitions, sequences, association rules, a collaborative model and user clusters.

Fitted from one event log. Called by pipelines (fit, save) and by retrieval (load). Knows nothing of users at request
time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from models.behaviour.als import AlsModel, fit_als
from models.behaviour.blend import BlendedModel
from models.behaviour.clusters import UserClusters, fit_clusters
from models.behaviour.collaborative import CollaborativeModel
from models.behaviour.ease import EaseModel, fit_ease
from models.behaviour.interactions import Interactions, interactions_of
from models.behaviour.next_basket import fit_next_basket
from models.behaviour.rules import Rules, fit_rules
from models.behaviour.sequences import Sequences, index_sequences
from models.behaviour.transitions import Transitions, fit_transitions
from models.catalog import ItemCatalog
from models.events import EventLog
from models.opinion import Scores

_META, _DISCOVERY = "behaviour.json", "discovery"
_MODELS: dict[str, type[EaseModel] | type[AlsModel] | type[BlendedModel]] = {
    model.kind: model for model in (EaseModel, AlsModel, BlendedModel)
}


class BehaviourSettings(BaseModel):
    """How behaviour is fitted from events."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    transition_steps: int = Field(default=10, ge=1, le=50)
    """How many events apart two items may be to count as a transition."""
    transition_shrinkage: float = Field(default=50.0, ge=0)
    """Added to an item's total of transitions before normalising: rarely seen items promise less."""
    transition_distance_power: float = Field(default=0.5, ge=0)
    """A transition over d events counts d to the minus this."""
    transition_backward: float = Field(default=0.5, ge=0, le=1)
    """What a transition counts in the direction in which it did not happen."""
    collaborative: Literal["ease", "next_basket"] = "ease"
    """What small catalogs are fitted with: which items go together, or (a shop) what is taken next and taken again."""
    ease_up_to_items: int = Field(default=10_000, ge=0)
    """Catalogs up to this size use a dense items × items matrix, larger ones implicit ALS."""
    ease_ridge: float = Field(default=500.0, gt=0)
    """EASE's regularisation."""
    ease_half_life_days: float | None = Field(default=None, gt=0)
    """Age after which an event counts half in EASE; null counts all alike."""
    basket_ridge: float = Field(default=2.0, gt=0)
    """The next-basket regression's regularisation."""
    basket_half_life_days: float | None = Field(default=20.0, gt=0)
    """Age after which a basket counts half in the next-basket regression; null counts all alike."""
    basket_history_half_life_days: float | None = Field(default=250.0, gt=0)
    """Age after which an event in the history before a basket counts half; null counts all alike."""
    discoveries: bool = False
    """Fit a second next-basket regression on what was new to the user, for answers that leave out what they have."""
    discovery_ridge: float = Field(default=2.0, gt=0)
    """The same regularisation for that one."""
    discovery_half_life_days: float | None = Field(default=20.0, gt=0)
    """Age after which a basket counts half in that one; null counts all alike."""
    discovery_share: float | None = Field(default=None, gt=0)
    """How much that one counts beside EASE (1.0), which it is added to then; null takes it alone."""
    als_dimension: int = Field(default=64, ge=1, le=1024)
    """Length of the ALS item factors."""
    als_rounds: int = Field(default=15, ge=1, le=200)
    """Alternating sweeps of ALS."""
    als_alpha: float = Field(default=1.0, gt=0)
    """Confidence that one event adds in ALS."""
    als_ridge: float = Field(default=0.05, gt=0)
    """ALS's regularisation."""
    rule_gap_s: float = Field(default=1800.0, ge=0)
    """A longer pause between two events of a user ends a basket; 0 makes every invoice time a basket of its own."""
    rule_support: int = Field(default=5, ge=1)
    """Baskets that must hold both items of an association rule."""
    rules_per_item: int = Field(default=20, ge=0, le=1000)
    """The most association rules an item keeps."""
    user_clusters: int = Field(default=16, ge=0, le=1024)
    """Groups of users by what they take; 0 makes none."""
    users_per_cluster: int = Field(default=20, ge=1)
    """There are fewer groups where they would hold less than this many users on average."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What users did, condensed; immutable and safe to share between threads."""

    transitions: Transitions
    collaborative: CollaborativeModel
    sequences: Sequences
    rules: Rules
    clusters: UserClusters
    discovery: CollaborativeModel
    """What is taken for the first time; the same object as `collaborative` where it was not fitted apart."""

    def link(self, row_a: int, row_b: int) -> float:
        """Return how strongly `row_b` followed `row_a` in the log, 0.0 where it never did or an item is newer."""
        if max(row_a, row_b) >= len(self.transitions):
            return 0.0
        return self.transitions.weight(row_a, row_b)

    def save(self, folder: Path) -> None:
        """Write the artifact's files into `folder`, which must exist."""
        self.transitions.save(folder)
        self.collaborative.save(folder)
        self.sequences.save(folder)
        self.rules.save(folder)
        self.clusters.save(folder)
        meta = {"collaborative": self.collaborative.kind}
        if self.discovery is not self.collaborative:
            meta["discovery"] = self.discovery.kind
            (folder / _DISCOVERY).mkdir()
            self.discovery.save(folder / _DISCOVERY)
        (folder / _META).write_text(json.dumps(meta))

    @classmethod
    def load(cls, folder: Path) -> Behaviour:
        """Map the artifact in `folder`. Raises ValueError on a kind this version does not know."""
        meta = json.loads((folder / _META).read_text())
        model = _load_model(folder, meta["collaborative"])
        discovery = _load_model(folder / _DISCOVERY, meta["discovery"]) if "discovery" in meta else model
        transitions = Transitions.load(folder)
        rules = Rules.load(folder, items=len(transitions))
        return cls(transitions, model, Sequences.load(folder), rules, UserClusters.load(folder), discovery)


def _load_model(folder: Path, kind: str) -> CollaborativeModel:
    if kind not in _MODELS:
        raise ValueError(f"{_META}: unknown collaborative model {kind!r}; rebuild the behaviour artifact")
    return _MODELS[kind].load(folder)


def fit_behaviour(
    log: EventLog, catalog: ItemCatalog, settings: BehaviourSettings | None = None, *, vectors: Scores | None = None
) -> Behaviour:
    """Fit everything, with the collaborative model that suits the catalog's size. Pure; deterministic.

    `vectors` float32[items, dim] are the items' content of unit length; without them there are no user clusters.
    """
    settings = settings or BehaviourSettings()
    rules = fit_rules(
        log,
        catalog,
        gap_s=settings.rule_gap_s,
        minimum_support=settings.rule_support,
        per_item=settings.rules_per_item,
    )
    interactions = interactions_of(log, catalog)
    found = replace(behaviour_of(interactions, settings), rules=rules)
    if vectors is None:
        return found
    wanted, users = settings.user_clusters, settings.users_per_cluster
    return replace(found, clusters=fit_clusters(interactions, vectors, clusters=wanted, minimum_users=users))


def behaviour_of(interactions: Interactions, settings: BehaviourSettings) -> Behaviour:
    """What retrieval reads of it, from columns already mapped to rows; without association rules and user clusters."""
    transitions = fit_transitions(
        interactions,
        steps=settings.transition_steps,
        shrinkage=settings.transition_shrinkage,
        distance_power=settings.transition_distance_power,
        backward=settings.transition_backward,
    )
    model = _collaborative(interactions, settings)
    return Behaviour(
        transitions,
        model,
        index_sequences(interactions),
        Rules.none(interactions.n_items),
        UserClusters.none(),
        _discovery(interactions, settings) or model,
    )


def _discovery(interactions: Interactions, settings: BehaviourSettings) -> CollaborativeModel | None:
    if not settings.discoveries or interactions.n_items > settings.ease_up_to_items:
        return None
    lately = fit_next_basket(
        interactions,
        ridge=settings.discovery_ridge,
        half_life_days=settings.discovery_half_life_days,
        history_half_life_days=settings.basket_history_half_life_days,
        discoveries=True,
    )
    if settings.discovery_share is None:
        return lately
    steady = fit_ease(interactions, ridge=settings.ease_ridge, half_life_days=settings.ease_half_life_days)
    return BlendedModel(steady, lately, share=settings.discovery_share)


def _collaborative(interactions: Interactions, settings: BehaviourSettings) -> CollaborativeModel:
    if interactions.n_items > settings.ease_up_to_items:
        return fit_als(
            interactions,
            dimension=settings.als_dimension,
            rounds=settings.als_rounds,
            alpha=settings.als_alpha,
            ridge=settings.als_ridge,
        )
    if settings.collaborative == "ease":
        return fit_ease(interactions, ridge=settings.ease_ridge, half_life_days=settings.ease_half_life_days)
    return fit_next_basket(
        interactions,
        ridge=settings.basket_ridge,
        half_life_days=settings.basket_half_life_days,
        history_half_life_days=settings.basket_history_half_life_days,
    )
