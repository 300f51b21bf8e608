//! `registryctl mcp` as an MCP client starts it: messages over the program's standard input and output.

mod arguments;
mod delegation;
mod documentation;
mod outages;
mod protocol;
mod support;
mod tools;
