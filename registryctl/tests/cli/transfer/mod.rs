//! Export and import on both databases, also while agents are running.

mod agents_that_run;
mod cards;
mod drafts;
mod files;
mod interruptions;
mod newer_registries;
mod outages;
mod present_agents;
mod round_trip;
mod support;
mod unfinished_agents;
