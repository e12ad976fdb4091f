"""The configuration: its values (`fields`), its sections, and how the whole is read (`configuration`)."""

from gateway.settings.configuration import (
    AUTO,
    ENVIRONMENT_PREFIX,
    Settings,
    SettingsError,
    describe,
    load,
)
from gateway.settings.fields import DatabaseUrl
from gateway.settings.sections import (
    ChainSection,
    EngineKind,
    LedgerSection,
    Limits,
    LogSection,
    ModelSection,
    RoutingSection,
    WitnessSection,
)

__all__ = [
    "AUTO",
    "ENVIRONMENT_PREFIX",
    "ChainSection",
    "DatabaseUrl",
    "EngineKind",
    "LedgerSection",
    "Limits",
    "LogSection",
    "ModelSection",
    "RoutingSection",
    "Settings",
    "SettingsError",
    "WitnessSection",
    "describe",
    "load",
]
