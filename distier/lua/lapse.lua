-- flags: allow-oom
-- Looks at modules that should have expired, and corrects the list of those that have a TTL.
-- KEYS    1..9 the shard, then record and frame of each id
-- ARGV    grace in ms, then ids
-- RETURNS {'OK', for each id: the version `epoch-ver` if it expired longer ago than the grace; '' if not}
-- KEEPS   changes no module, and no entry of one whose expiry is still to come. The caller deletes these versions, each only if
--         it is still the current one: a module that was put again meanwhile stays
local refused = refuse()
if refused then return refused end
local now, reply = now_ms(), {'OK'}
for i = 2, #ARGV do placed(KEYS[6 + 2 * i]) end -- a wrong type fails here, before the first write
for i = 2, #ARGV do
  local id, record = ARGV[i], KEYS[6 + 2 * i]
  local old = placed(record)
  local at = old.tier ~= 'none' and old.tier ~= 'deleted' and expiry_of(record)
  if not at then call('ZREM', EXPIRING, id) else note_expiry(id, record) end
  reply[i] = at and now >= at + tonumber(ARGV[1]) and old.version or ''
end
return reply
