-- Heartbeats of AGENTS agents, in random order. If PAUSE is set, each connection waits this many milliseconds on average between a
-- response and the next request.
local agents, pause = tonumber(os.getenv("AGENTS") or "10000"), tonumber(os.getenv("PAUSE") or "0")
math.randomseed(os.time())

function request()
  return wrk.format("POST", "/agents/agent-" .. math.random(0, agents - 1) .. "/heartbeat")
end

if pause > 0 then
  function delay()
    return math.random(0, math.floor(2 * pause))
  end
end
