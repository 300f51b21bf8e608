-- Registers AGENTS agents with three capabilities each, one after another, and then the same again.
local agents, next = tonumber(os.getenv("AGENTS") or "10000"), 0
local verbs = {"code", "test", "build", "deploy", "review", "translate", "plan", "lint", "profile", "document"}
local things = {"python", "rust", "java", "docs", "images", "schemas", "pipelines", "tickets", "reports", "queries"}

local function capability(number)
  local verb, thing = verbs[number % 10 + 1], things[math.floor(number / 10) % 10 + 1]
  local text = '{"name":"%s_%s_%d","description":"Can %s %s for the team","cost_estimate":"%d tokens","tags":["%s","%s"]}'
  return text:format(verb, thing, number % 3, verb, thing, number % 2000, verb, thing)
end

function request()
  local number = next % agents
  next = next + 1
  local body = '{"agent_id":"agent-%d","agent_name":"Agent %d","base_url":"http://agent-%d:8000",' ..
    '"heartbeat_interval_seconds":3600,"capabilities":[%s,%s,%s]}'
  body = body:format(number, number, number, capability(number), capability(number + 1), capability(number + 2))
  return wrk.format("POST", "/register", {["content-type"] = "application/json"}, body)
end

function response(status)
  if status ~= 200 then error("a registration was answered " .. status) end
end
