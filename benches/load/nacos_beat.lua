-- Heartbeats of 10,000 instances in 100 services, in random order.
math.randomseed(os.time())

function request()
  local i = math.random(0, 9999)
  local ip, service = ("10.0.%d.%d"):format(math.floor(i / 250), i % 250 + 1), "svc" .. i % 100
  local beat = ('{"ip":"%s","port":8000,"serviceName":"%s","cluster":"DEFAULT","weight":1,"metadata":{}}'):format(ip, service)
  beat = beat:gsub("[^%w%.]", function(character) return ("%%%02X"):format(character:byte()) end)
  return wrk.format("PUT", ("/nacos/v1/ns/instance/beat?serviceName=%s&ip=%s&port=8000&beat=%s"):format(service, ip, beat))
end
