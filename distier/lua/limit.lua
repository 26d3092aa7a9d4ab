-- flags: allow-oom
-- Sets this shard's quotas from a version of the ledger, and returns what must be evicted for them.
-- KEYS    1..9 the shard
-- ARGV    version of the ledger, then hot tokens, hot bytes, warm modules, warm bytes (none: the limits stay unchanged)
-- RETURNS {'OK', the four limits} | {'STALE', version} | {'OVER', ...}: set, but the shard still exceeds them
-- KEEPS   limits are never replaced by those of an older version. After OK, the shard stays within them until a newer version is
--         set, because every change that adds is checked
local refused = refuse()
if refused then return refused end
local names = {'hot_tokens', 'hot_bytes', 'warm_modules', 'warm_bytes'}
local kept = call('HGET', LIMITS, 'shares') or '0'
if tonumber(kept) > tonumber(ARGV[1]) then return {'STALE', kept} end
call('HSET', LIMITS, 'shares', ARGV[1])
if #ARGV > 1 then
  for i, name in ipairs(names) do call('HSET', LIMITS, name, ARGV[i + 1]) end
  local _, over = budgets()
  if math.max(unpack(over)) > 0 then return name_victims(over, '', now_ms()) end
end
return {'OK', unpack(call('HMGET', LIMITS, unpack(names)))}
