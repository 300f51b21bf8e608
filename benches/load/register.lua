-- Registers agents with three capabilities each, one after another from FIRST (0) up to AGENTS (10000), then starts over. A hundred
-- agents have capabilities for security. If CHANGE is set, each registration differs from the last one.
local agents, next = tonumber(os.getenv("AGENTS") or "10000"), tonumber(os.getenv("FIRST") or "0")
local changing, times = os.getenv("CHANGE"), os.time() % 1000000
local verbs = {"code", "test", "build", "deploy", "review", "translate", "plan", "lint", "profile", "document"}
local things = {"python", "rust", "java", "docs", "images", "schemas", "pipelines", "tickets", "reports", "queries"}

local function capability(number, tag)
  local verb, thing = verbs[number % 10 + 1], things[math.floor(number / 10) % 10 + 1]
  local text = '{"name":"%s_%s_%d","description":"Can %s %s for the team","cost_estimate":"%d tokens","tags":["%s","%s"%s]}'
  local cost = number % 2000
  if changing then cost = times + next end
  return text:format(verb, thing, number % 3, verb, thing, cost, verb, thing, tag)
end

function request()
  local number = next % agents
  next = next + 1
  local tag = ""
  if number % math.floor(agents / 100) == 0 then tag = ',"security"' end
  local body = '{"agent_id":"agent-%d","agent_name":"Agent %d","base_url":"http://agent-%d:8000",' ..
    '"heartbeat_interval_seconds":3600,"capabilities":[%s,%s,%s]}'
  body = body:format(number, number, number, capability(number, tag), capability(number + 1, ""), capability(number + 2, ""))
  return wrk.format("POST", "/register", {["content-type"] = "application/json"}, body)
end

function response(status)
  if status ~= 200 then error("a registration was answered " .. status) end
end
