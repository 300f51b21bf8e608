-- Heartbeats of AGENTS agents, in random order. Where PAUSE is set each connection waits as many milliseconds between an
-- answer and the next request, on average.
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
