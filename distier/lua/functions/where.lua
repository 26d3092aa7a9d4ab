-- Where a module is, and why: `where`, `explain`.
local function seen(s, id)
  local record, frame = record_key(s, id), frame_key(s, id)
  local f = call('HMGET', record, 'tier', 'epoch', 'ver', 'bytes', 'tokens', 'clean', 'frame_bytes', 'archived_bytes', 'created',
    'updated', 'type', 'sha256', 'moved', 'codec', 'ttl')
  if not f[1] or f[1] == 'deleted' then return nil end
  local function score(key) return tonumber(call('ZSCORE', key, id) or nil) end
  local function whole(n) return n and math.floor(n) end
  local ttl = call('PTTL', frame)
  local clean = f[6] == '1'
  local m = {
    id = id, tier = f[1], version = f[2] .. '-' .. f[3], size_bytes = tonumber(f[4]), tokens = tonumber(f[5]), clean = clean,
    archived_bytes = clean and tonumber(f[8] or 0) or nil, created_ms = tonumber(f[9]), updated_ms = tonumber(f[10]),
    content_type = f[11], sha256 = f[12], uses = {double = score(s.uses) or 0}, last_use_ms = whole(score(s.hot)), due_ms = whole(score(s.warm)),
    dirty_since_ms = whole(score(s.dirty)), pinned_until_ms = whole(score(s.pins)), ttl_ms = ttl >= 0 and ttl or nil,
    moved = f[13] or nil, codec = f[14] or nil, expires_ms = f[15] and f[10] + f[15] or nil,
  }
  if m.tier == 'warm' and clean and ttl == -2 then m.tier = 'cold' end
  m.stored_bytes = m.tier == 'hot' and m.size_bytes or m.tier == 'warm' and tonumber(f[7] or 0) or m.archived_bytes or 0
  if m.pinned_until_ms and m.pinned_until_ms <= s.now then m.pinned_until_ms = nil end
  return m
end

local function found(keys, args)
  local s, no = shard_of(keys)
  if not s then return nil, no end
  local id = without_map(args)[1]
  if not id then return nil, fail('name a module') end
  no = elsewhere(s, id)
  if no then return nil, no end
  local m = seen(s, id)
  if not m or m.expires_ms and m.expires_ms <= s.now then return nil, fail('there is no module ' .. id .. ', as far as this shard knows') end
  return s, m
end

local REASONS = {
  put = 'it was written', get = 'it was read from the archive', uses = 'it was used often enough', evict = 'others needed the room',
  headroom = 'the worker keeps room free', idle = 'nobody used it', expire = 'its copy expired', recover = 'it was found in the archive',
  predict = 'it was predicted', operator = 'an operator moved it', pin = 'it was pinned', request = 'it was requested',
}
local function why(s, m)
  if not m.moved then return 'it has not moved since layout 2' end
  local at, from, to, reason = string.match(m.moved, '^(%d+) (%S+) (%S+) (.*)$')
  local how = from == 'none' and 'came to ' .. m.tier or 'went from ' .. from .. ' to ' .. m.tier
  return how .. ' ' .. ago(s, tonumber(at)) .. ' because ' .. (REASONS[reason] or 'of ' .. reason), reason, tonumber(at)
end

local function where(keys, args)
  local s, m = found(keys, args)
  if not s then return m end
  local state = m.clean and 'archived' or 'not archived yet, since ' .. span(s.now - (m.dirty_since_ms or s.now))
  local lines = {
    string.format('%s: %s, %s', m.id, m.tier, state),
    string.format('%s, %s, %s stored in %s', counted(m.tokens, 'token'), size(m.size_bytes), size(m.stored_bytes), m.tier),
    string.format('version %s, %s, written %s', m.version, m.content_type or 'no type', ago(s, m.updated_ms)),
    'it ' .. (why(s, m)),
  }
  if m.last_use_ms then lines[#lines + 1] = 'last used ' .. ago(s, m.last_use_ms) end
  if m.due_ms then lines[#lines + 1] = 'due to leave warm in ' .. span(m.due_ms - s.now) end
  lines[#lines + 1] = counted(math.floor(m.uses.double), 'use')
  if m.pinned_until_ms then lines[#lines + 1] = 'pinned for ' .. span(m.pinned_until_ms - s.now) end
  if m.expires_ms then lines[#lines + 1] = 'expires in ' .. span(m.expires_ms - s.now) end
  return answer(args, m, lines)
end

-- How many modules leave before this one, by the order of eviction.
local function place_in_line(s, m)
  local zset = m.tier == 'hot' and s.hot or m.tier == 'warm' and s.warm or nil
  if not zset then return nil end
  if s.policy ~= 'lru' and s.ranked then zset = s.root .. 'rank:' .. m.tier end
  return call('ZRANK', zset, m.id) or nil, call('ZCARD', zset)
end

local function explain(keys, args)
  local s, m = found(keys, args)
  if not s then return m end
  local before, all = place_in_line(s, m)
  local told, reason, at = why(s, m)
  local lines = {m.id .. ' is ' .. m.tier .. ': it ' .. told .. '.'}
  if m.pinned_until_ms then lines[2] = 'It is pinned for ' .. span(m.pinned_until_ms - s.now) .. ', so it does not leave.'
  elseif before then lines[2] = counted(before, 'module') .. ' of ' .. commas(all) .. ' would leave ' .. m.tier .. ' before it.' end
  if not m.clean then lines[#lines + 1] = 'It is not archived yet, so a copy stays in Redis.' end
  if m.tier ~= 'hot' then lines[#lines + 1] = 'It has ' .. counted(math.floor(m.uses.double), 'use') .. '.' end
  local data = {id = m.id, tier = m.tier, reason = reason, moved_ms = at, before = before, of = all, uses = m.uses, clean = m.clean,
    pinned_until_ms = m.pinned_until_ms, policy = s.policy, text = table.concat(lines, ' ')}
  return answer(args, data, lines)
end
