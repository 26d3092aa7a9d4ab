-- What redis_exporter (`--script`) asks Redis for: the sums of each namespace, as
-- redis_script_values{key="NAMESPACE.FIELD"}. Name the tags here: the namespace, or with several shards each `namespace.N`.
-- RETURNS name and value of each number, flat, as strings
local tags = {'default'}
local out = {}
local function add(tag, name, value)
  out[#out + 1] = tag .. '.' .. name
  out[#out + 1] = tostring(value)
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, tag in ipairs(tags) do
  local root = 'distier:{' .. tag .. '}:'
  for _, hash in ipairs({'usage', 'limits'}) do
    local fields = redis.call('HGETALL', root .. hash)
    for i = 1, #fields, 2 do add(tag, hash .. '.' .. fields[i], fields[i + 1]) end
  end
  local oldest = redis.call('ZRANGE', root .. 'dirty', 0, 0, 'WITHSCORES')
  add(tag, 'dirty_oldest_seconds', oldest[2] and math.floor((now - tonumber(oldest[2])) / 1000) or 0)
  add(tag, 'epoch', redis.call('HMGET', root .. 'epoch', 'epoch')[1] or 0)
end
return out
