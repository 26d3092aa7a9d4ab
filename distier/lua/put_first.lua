-- The common case first, without most of the prelude: all modules go to hot, each has no version yet or a hot one, nothing is
-- conditional, sent again or has a TTL, there is room, and the policy is `lru`. In any other case nothing was written, and the general case follows.
local function put_where_there_is_room()
  if ARGV[#ARGV] ~= '' then return nil end
  call('ZCARD', HOT) call('ZCARD', DIRTY) call('XLEN', EVENTS) -- a wrong type fails here, before the first write
  local e, incarnation = call('HMGET', EPOCH, 'epoch', 'layout', 'replid', 'ver', 'clock', 'eviction'), replid()
  if not e[1] or e[2] ~= LAYOUT or incarnation ~= '' and e[3] ~= incarnation or (e[6] or 'lru') ~= 'lru' then return nil end
  local limit = call('HMGET', LIMITS, 'hot_tokens', 'hot_bytes', 'events_max')
  local used = call('HMGET', USAGE, 'hot_count', 'hot_tokens', 'hot_bytes', 'dirty_count', 'dirty_bytes', 'archived_count',
    'archived_bytes')
  for i = 1, 7 do used[i] = tonumber(used[i] or 0) end
  local max_tokens, max_bytes = tonumber(limit[1]), tonumber(limit[2])
  local epoch, ver, modules, k, a = e[1], tonumber(e[4]), {}, 10, 2
  for i = 1, tonumber(ARGV[1]) do
    local write_id, tokens, bytes = ARGV[a + 1], tonumber(ARGV[a + 7]), tonumber(ARGV[a + 8])
    local old = call('HMGET', KEYS[k], 'tier', 'tokens', 'bytes', 'clean', 'archived_bytes', 'created', 'reserved', 'ttl')
    local slot = '#' .. (ver + i) % DONE_MAX
    local done = call('HMGET', KEYS[k + 2], write_id, slot)
    if ARGV[a + 2] ~= 'hot' or ARGV[a + 3] ~= '' or ARGV[a + 4] ~= '' or ARGV[a + 11] == 'ttl' or done[1]
      or old[1] and old[1] ~= 'hot' or old[7] or old[8] then
      return nil
    end
    local was_tokens, was_bytes = tonumber(old[2] or 0) or 0, tonumber(old[3] or 0) or 0
    used[2], used[3] = used[2] + tokens - was_tokens, used[3] + bytes - was_bytes
    if tokens > max_tokens or bytes > max_bytes or tokens > was_tokens and used[2] > max_tokens
      or bytes > was_bytes and used[3] > max_bytes then return nil end
    if not old[1] then used[1], used[4], used[5] = used[1] + 1, used[4] + 1, used[5] + bytes
    elseif old[4] == '1' then
      used[4], used[5], used[6] = used[4] + 1, used[5] + bytes, used[6] - 1
      used[7] = used[7] - (tonumber(old[5] or 0) or 0)
    else used[5] = used[5] + bytes - was_bytes end
    local chunk
    if not old[1] then chunk = select(2, is_listed(ARGV[a])) end
    modules[i] = {a, k, old[1] or 'none', old[6], slot, done[2], chunk}
    k, a = k + 3, a + 11 + 2 * tonumber(ARGV[a + 10])
  end
  local now, divided = now_ms(), false
  local answers, recent = {'OK'}, string.format('%.3f', clock)
  for i, m in ipairs(modules) do
    local a, k, was, created, slot, before, chunk = unpack(m, 1, 7)
    local id, write_id, record, version = ARGV[a], ARGV[a + 1], KEYS[k], epoch .. '-' .. ver + i
    call('UNLINK', record, KEYS[k + 1])
    call('HSET', record, 'tier', 'hot', 'epoch', epoch, 'ver', ver + i, 'tok', write_id, 'seen', epoch,
      'bytes', ARGV[a + 8], 'tokens', ARGV[a + 7], 'clean', '0', 'created', created or now, 'updated', now,
      'moved', now .. ' ' .. was .. ' hot put',
      unpack(ARGV, a + 11, a + 10 + 2 * tonumber(ARGV[a + 10])))
    if chunk then divided = list_in(divided and chunk_of(id) or chunk, id) or divided end
    call('ZADD', HOT, recent, id)
    call('ZADD', DIRTY, 'NX', recent, id)
    if before then call('HDEL', KEYS[k + 2], before) end
    call('HSET', KEYS[k + 2], slot, write_id, write_id, version)
    call('XADD', EVENTS, 'MAXLEN', '~', limit[3] or '10000', '*',
      'id', id, 'from', was, 'to', 'hot', 'reason', 'put', 'version', version)
    answers[i + 1] = {'OK', epoch, ver + i, 0}
  end
  call('HSET', EPOCH, 'ver', ver + #modules, 'clock', recent)
  call('HSET', USAGE, 'hot_count', used[1], 'hot_tokens', used[2], 'hot_bytes', used[3], 'dirty_count', used[4],
    'dirty_bytes', used[5], 'archived_count', used[6], 'archived_bytes', used[7])
  return answers
end
local written = put_where_there_is_room()
if written then return written end
