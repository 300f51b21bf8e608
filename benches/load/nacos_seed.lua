-- Registers 10,000 instances in 100 services, one after another, then starts over.
local next = 0

function request()
  local i = next % 10000
  next = next + 1
  local body = ("serviceName=svc%d&ip=10.0.%d.%d&port=8000"):format(i % 100, math.floor(i / 250), i % 250 + 1)
  return wrk.format("POST", "/nacos/v1/ns/instance", {["content-type"] = "application/x-www-form-urlencoded"}, body)
end
