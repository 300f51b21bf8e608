-- Heartbeats of AGENTS agents, in random order.
local agents = tonumber(os.getenv("AGENTS") or "10000")
math.randomseed(os.time())

function request()
  return wrk.format("POST", "/agents/agent-" .. math.random(0, agents - 1) .. "/heartbeat")
end
