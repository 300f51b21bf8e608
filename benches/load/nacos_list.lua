-- Lists of the 100 instances of one of 100 services.
math.randomseed(os.time())

function request()
  return wrk.format("GET", "/nacos/v1/ns/instance/list?serviceName=svc" .. math.random(0, 99))
end
