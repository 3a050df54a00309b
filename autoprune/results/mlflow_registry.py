"""The model registry: a front's models as versions of one registered model, under aliases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoprune.errors import AutopruneError
from autoprune.results.mlflow_api import SearchApi

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

FRONT = "front"
"""The versions' tag that says whether they are still on a front."""


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A logged model that is to be a version."""

    key: str
    """The trial it belongs to."""
    run: str
    model_id: str
    location: str
    """Where its files are."""
    about: str


def check_name(name: str) -> None:
    """Raise `AutopruneError` for what cannot be the name of a registered model."""
    if not name.strip() or any(sign in name for sign in "/:@"):
        raise AutopruneError(
            f"The name of a registered model must not be empty or hold any of / : @, "
            f"but is {name!r}."
        )


class Registry:
    """Keeps a search's front in the registry.

    Parameters
    ----------
    name
        The registered model.
    search
        The search's id: other searches may have versions there too.
    """

    def __init__(self, api: SearchApi, name: str, *, search: str) -> None:
        self._api = api
        self._name = name
        self._search = search

    def register(self, models: list[Registered], aliases: Mapping[str, str]) -> None:
        """Make each model a version, unless it is one already, and move the aliases to them.

        `aliases` has the trials they belong to. Versions that have left the front say so.
        """
        if self._missing():
            self._api.client.create_registered_model(self._name)
            self._api.step()
        known = {version.source: version for version in self._versions()}
        numbers: dict[str, str] = {}
        for model in models:
            version = known.pop(model.location, None) or self._create(model)
            numbers[model.key] = version.version
            self._tag(version, "true")
        for version in known.values():
            self._tag(version, "false")
        for alias, key in aliases.items():
            if key in numbers:
                self._api.client.set_registered_model_alias(self._name, alias, numbers[key])
                self._api.step()

    def _missing(self) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self._api.client.get_registered_model(self._name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return True
            raise
        return False

    def _versions(self) -> list[ModelVersion]:
        """Return this search's versions."""
        found: list[Any] = []
        token: str | None = None
        while True:
            page = self._api.client.search_model_versions(
                f"name = '{self._name}'", page_token=token
            )
            self._api.step()
            found += page
            token = page.token
            if not token:
                return [v for v in found if v.tags.get("autoprune.search") == self._search]

    def _create(self, model: Registered) -> ModelVersion:
        made = self._api.client.create_model_version(
            self._name,
            source=model.location,  # by its id it would be looked for on the default server
            run_id=model.run,
            model_id=model.model_id,
            description=model.about,
            tags={"autoprune.search": self._search, "trial": model.key},
        )
        self._api.step()
        return made

    def _tag(self, version: ModelVersion, value: str) -> None:
        if version.tags.get(FRONT) != value:
            self._api.client.set_model_version_tag(self._name, version.version, FRONT, value)
            self._api.step()
