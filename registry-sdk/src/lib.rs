#![doc = "placeholder"]
pub mod contract;
