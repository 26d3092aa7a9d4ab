-- flags: allow-oom
-- Accounts for warm frames that have expired: their modules become cold.
-- KEYS    1..9 the shard, then record and frame of each id
-- ARGV    ids
-- RETURNS {'OK', number that became cold}
-- KEEPS   a dirty module never becomes cold; a module with an existing frame stays warm
local refused = refuse()
if refused then return refused end
local now, gone = now_ms(), 0
for i = 1, #ARGV do placed(KEYS[8 + 2 * i]) end -- a wrong type fails here, before the first write
for i, id in ipairs(ARGV) do
  local record, frame = KEYS[8 + 2 * i], KEYS[9 + 2 * i]
  local old = placed(record)
  if old.tier ~= 'warm' then
    call('ZREM', WARM, id)
    retire(WARM_RANK, id, 'expire')
  elseif call('EXISTS', frame) == 1 then
    local left = call('PTTL', frame)
    call('ZADD', WARM, now + (left >= 0 and left or tonumber(call('HGET', LIMITS, 'warm_ttl_ms'))), id)
  elseif old.clean then
    count(old, -1)
    count({tier = 'cold', tokens = old.tokens, bytes = old.bytes, clean = true, archived_bytes = old.archived_bytes}, 1)
    call('HSET', record, 'tier', 'cold', 'moved', move_of(now, 'warm', 'cold', 'expire'))
    call('HDEL', record, 'codec', 'frame_bytes')
    call('ZREM', WARM, id)
    retire(WARM_RANK, id, 'expire')
    emit(id, 'warm', 'cold', 'expire', old.version)
    gone = gone + 1
  else -- the only copy was deleted by others; checked again later
    call('ZADD', WARM, now + tonumber(call('HGET', LIMITS, 'warm_ttl_ms')), id)
  end
end
settle()
return {'OK', gone}
