//! `registryctl mcp`, driven over standard input and output as by an MCP client.

mod arguments;
mod delegation;
mod documentation;
mod list;
mod outages;
mod protocol;
mod support;
mod tools;
