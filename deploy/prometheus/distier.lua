-- The script of redis_exporter (`--script`). It exports the sums of each shard as redis_script_values{key="TAG.FIELD"}. TAG is
-- the namespace, or `namespace.N` with several shards, whose number is read from Redis. On a cluster each master exports its
-- own shards. exporter.sh writes NAMESPACES into the line below; without it, write them there.
-- RETURNS name and value of each number, flat, as strings; nothing for a namespace that does not exist
local namespaces = {'default'}
local tries = 256 -- shards to look for, because some are on other masters
local out = {}
local function add(tag, name, value)
  out[#out + 1] = tag .. '.' .. name
  out[#out + 1] = tostring(value)
end
local function epoch(tag, field)
  local found = redis.pcall('HMGET', 'distier:{' .. tag .. '}:epoch', field)
  return not found.err and found[1] -- an error: another master has this shard
end
local function tags(namespace)
  if epoch(namespace, 'shards') then return {namespace} end
  for i = 0, tries - 1 do
    local shards = tonumber(epoch(namespace .. '.' .. i, 'shards') or 0)
    if shards > 1 then
      local found = {}
      for n = 0, shards - 1 do found[#found + 1] = namespace .. '.' .. n end
      return found
    end
  end
  return {}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, namespace in ipairs(namespaces) do
  for _, tag in ipairs(tags(namespace)) do
    local current = epoch(tag, 'epoch')
    if current then
      local root = 'distier:{' .. tag .. '}:'
      for _, hash in ipairs({'usage', 'limits'}) do
        local fields = redis.call('HGETALL', root .. hash)
        for i = 1, #fields, 2 do add(tag, hash .. '.' .. fields[i], fields[i + 1]) end
      end
      local oldest = redis.call('ZRANGE', root .. 'dirty', 0, 0, 'WITHSCORES')
      add(tag, 'dirty_oldest_seconds', oldest[2] and math.floor((now - tonumber(oldest[2])) / 1000) or 0)
      add(tag, 'epoch', current)
    end
  end
end
return out
