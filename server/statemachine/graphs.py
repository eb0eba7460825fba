"""The definitions that ship with the service, and the journeys that they make up."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from server.statemachine.definition import Definition, PhaseDefinition
from server.statemachine.states import FlowStatus as Status

DISCOVERY = Definition(
    "discovery",
    1,
    (
        PhaseDefinition("data_import", Status.DATA_GATHERING),
        PhaseDefinition("field_mapping", Status.DISCOVERY, ("data_import",), requires_approval=True),
        PhaseDefinition("data_cleansing", Status.DISCOVERY, ("field_mapping",)),
        PhaseDefinition("asset_creation", Status.DISCOVERY, ("data_cleansing",)),
        PhaseDefinition("asset_inventory", Status.ASSESSMENT_READY, ("asset_creation",)),
        PhaseDefinition("dependency_analysis", Status.PLANNING, ("asset_inventory",)),
        PhaseDefinition("tech_debt_analysis", Status.PLANNING, ("asset_inventory",)),
    ),
)

# Which applications, how they are built, how hard and how risky they are, and what becomes of each (the "6 R" of cloud migration):
# a recommendation is checked against the data, then approved by a person.
ASSESSMENT = Definition(
    "assessment",
    1,
    (
        PhaseDefinition("application_selection", Status.ASSESSMENT_READY),
        PhaseDefinition("architecture_review", Status.ACTIVE, ("application_selection",), weight=2.0),
        PhaseDefinition("complexity_analysis", Status.ACTIVE, ("architecture_review",)),
        PhaseDefinition("risk_analysis", Status.ACTIVE, ("architecture_review",)),
        PhaseDefinition(
            "strategy_recommendation",
            Status.PLANNING,
            ("complexity_analysis", "risk_analysis"),
            requires_validation=True,
            requires_approval=True,
        ),
    ),
)

# Waves first; where they go and who moves them can be worked out side by side; the schedule needs both; a person signs the plan.
PLANNING = Definition(
    "planning",
    1,
    (
        PhaseDefinition("wave_planning", Status.PLANNING, weight=2.0),
        PhaseDefinition("target_design", Status.PLANNING, ("wave_planning",)),
        PhaseDefinition("resource_allocation", Status.PLANNING, ("wave_planning",)),
        PhaseDefinition("scheduling", Status.PLANNING, ("target_design", "resource_allocation")),
        PhaseDefinition("plan_review", Status.PLANNING, ("scheduling",), requires_approval=True),
    ),
)

# A rehearsal is validated before anybody approves the cutover; the old servers go only after the new ones were verified. Cutover and
# decommissioning are not repeated lightly: one retry.
EXECUTION = Definition(
    "execution",
    1,
    (
        PhaseDefinition("preparation", Status.ACTIVE),
        PhaseDefinition("rehearsal", Status.ACTIVE, ("preparation",), weight=2.0, requires_validation=True),
        PhaseDefinition("cutover", Status.ACTIVE, ("rehearsal",), weight=3.0, requires_approval=True, max_retries=1),
        PhaseDefinition("verification", Status.ACTIVE, ("cutover",), weight=2.0, requires_validation=True),
        PhaseDefinition("decommissioning", Status.ACTIVE, ("verification",), requires_approval=True, max_retries=1),
    ),
)

BUILT_IN: Mapping[str, Definition] = MappingProxyType({d.type: d for d in (DISCOVERY, ASSESSMENT, PLANNING, EXECUTION)})

# A flow's type names its journey: the domains that it goes through, in order.
JOURNEYS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"migration": ("discovery", "assessment", "planning", "execution"), **{name: (name,) for name in BUILT_IN}}
)
