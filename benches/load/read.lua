-- GET requests for AT followed by the id of one of AGENTS agents, in random order.
local agents, at = tonumber(os.getenv("AGENTS") or "10000"), os.getenv("AT")
math.randomseed(os.time())

function request()
  return wrk.format("GET", at .. "agent-" .. math.random(0, agents - 1))
end
