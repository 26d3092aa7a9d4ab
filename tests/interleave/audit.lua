-- Test only: holds one world against its invariants, in one step.
-- KEYS    1..9 the shard, then record and frame of each id
-- ARGV    ids
-- RETURNS {problem ('' if there is none), epoch if installed in this incarnation else '0', verified, then for each id: tier, epoch, ver, clean, seen,
--         '1' if Redis has a copy}
local call = redis.call
local problems, sums, sizes = {}, {}, {hot = 0, warm = 0, dirty = 0}
local function bad(text) problems[#problems + 1] = text end
local function add(field, n) sums[field] = (sums[field] or 0) + n end
local function has(zset, id) return call('ZSCORE', KEYS[zset], id) and true or false end

local index = string.sub(KEYS[1], 1, -6) .. 'ids:'
local e = call('HMGET', KEYS[1], 'epoch', 'verified', 'replid')
local incarnation = call('HGET', KEYS[1] .. ':clock', 'replid')
local out = {'', e[3] == incarnation and e[1] or '0', e[2] or '0'}
for i, id in ipairs(ARGV) do
  local record, frame = KEYS[8 + 2 * i], KEYS[9 + 2 * i]
  local f = call('HMGET', record, 'tier', 'epoch', 'ver', 'clean', 'seen', 'bytes', 'tokens', 'frame_bytes', 'archived_bytes', 'tok', 'codec')
  local tier, clean, bytes = f[1] or 'none', f[4] == '1', tonumber(f[6] or 0)
  local ttl, content, framed = call('PTTL', record), call('HSTRLEN', record, 'content'), call('EXISTS', frame) == 1
  local hot, warm, dirty = has(4, id), has(5, id), has(6, id)
  local exists = tier ~= 'none' and tier ~= 'deleted'
  if not clean and tier ~= 'none' then
    if not dirty then bad(id .. ' is dirty and not in the dirty set') end
    if ttl ~= -1 then bad(id .. ' is dirty and has a TTL') end
    add('dirty_count', 1) add('dirty_bytes', bytes)
    sizes.dirty = sizes.dirty + 1
    if tier == 'deleted' then add('deleted_count', 1) end
  elseif dirty then bad(id .. ' is in the dirty set and is ' .. tier .. (clean and ', clean' or '')) end
  if exists then
    if ttl ~= -1 then bad(id .. ' is ' .. tier .. ' and its record has a TTL') end
    add(tier .. '_count', 1) add(tier .. '_tokens', tonumber(f[7] or 0)) add(tier .. '_bytes', bytes)
    if clean then add('archived_count', 1) add('archived_bytes', tonumber(f[9] or 0)) end
  elseif has(7, id) then bad(id .. ' does not exist and has uses') end
  if (call('ZSCORE', index, id) and true or false) ~= exists then bad(id .. ' is ' .. tier .. ' and the index says otherwise') end
  if tier == 'hot' then
    sizes.hot = sizes.hot + 1
    if content ~= bytes or call('HEXISTS', record, 'content') == 0 then bad(id .. ' is hot without its content') end
    if framed then bad(id .. ' is hot and has a frame') end
    if not hot then bad(id .. ' is hot and not in the hot set') end
  else
    if call('HEXISTS', record, 'content') == 1 then bad(id .. ' is ' .. tier .. ' and has content') end
    if hot then bad(id .. ' is ' .. tier .. ' and in the hot set') end
  end
  if tier == 'warm' then
    sizes.warm = sizes.warm + 1
    add('warm_frame_bytes', tonumber(f[8] or 0))
    if not warm then bad(id .. ' is warm and not in the warm set') end
    local left = call('PTTL', frame)
    if framed and call('STRLEN', frame) ~= tonumber(f[8]) then bad(id .. ' has a frame of another length') end
    if not clean and left ~= -1 then bad(id .. ' is warm and dirty, and its frame has PTTL ' .. left) end
    local dictionary = string.match(f[11] or '', '^lz4d:(.*)$')
    if dictionary and not clean then bad(id .. ' is warm and dirty, and its frame needs a dictionary') end
    if dictionary and framed and call('HEXISTS', string.sub(KEYS[1], 1, -6) .. 'dictionaries', dictionary) == 0 then
      bad(id .. ' is warm, and its dictionary was dropped')
    end
    if clean and left == -1 then bad(id .. ' is warm and clean, and its frame has no TTL') end
  else
    if framed then bad(id .. ' is ' .. tier .. ' and has a frame') end
    if warm then bad(id .. ' is ' .. tier .. ' and in the warm set') end
  end
  if tier == 'cold' and not clean then bad(id .. ' is cold and dirty') end
  if tier == 'deleted' and clean and ttl < 0 then bad(id .. ' is an archived tombstone without a TTL') end
  for _, v in ipairs({tier, f[2] or '0', f[3] or '0', clean and '1' or '0', f[5] or '0',
    (tier == 'hot' or tier == 'deleted' or framed) and '1' or '0'}) do out[#out + 1] = v end
end
for zset, name in pairs({[4] = 'hot', [5] = 'warm', [6] = 'dirty'}) do
  if call('ZCARD', KEYS[zset]) ~= sizes[name] then bad('the ' .. name .. ' set has ids that do not exist') end
end
local root = string.sub(KEYS[1], 1, -6)
local policy = call('HMGET', KEYS[1], 'eviction', 'ranked')
for tier, zset in pairs({hot = KEYS[4], warm = KEYS[5]}) do
  local ranks = root .. 'rank:' .. tier, {}
  for _, id in ipairs(call('ZRANGE', ranks, 0, -1)) do
    if not call('ZSCORE', zset, id) then bad(id .. ' has a rank in ' .. tier .. ' and is not there') end
  end
  if policy[2] and (policy[1] or 'lru') ~= 'lru' and call('ZCARD', ranks) ~= call('ZCARD', zset) then
    bad(tier .. ' has modules without a rank')
  end
end
local usage = call('HGETALL', KEYS[3])
for i = 1, #usage, 2 do
  local field, kept = usage[i], tonumber(usage[i + 1])
  if kept ~= (sums[field] or 0) then bad('usage of ' .. field .. ' is ' .. kept .. ', a recount gives ' .. (sums[field] or 0)) end
  sums[field] = nil
end
for field, n in pairs(sums) do
  if n ~= 0 then bad('usage has no ' .. field .. ', a recount gives ' .. n) end
end
local used = call('HMGET', KEYS[3], 'hot_tokens', 'hot_bytes', 'warm_count', 'warm_frame_bytes')
for i, limit in ipairs(call('HMGET', KEYS[2], 'hot_tokens', 'hot_bytes', 'warm_modules', 'warm_bytes')) do
  if limit and tonumber(used[i] or 0) > tonumber(limit) then bad('budget ' .. i .. ' is exceeded: ' .. used[i] .. ' of ' .. limit) end
end
out[1] = table.concat(problems, '; ')
return out
