-- The shard as a whole: `tiers`, `top`, `moves`, `health`, `nodes`, `help`.
local function numbers(key, names)
  local out = {}
  for i, value in ipairs(call('HMGET', key, unpack(names))) do out[names[i]] = tonumber(value or 0) end
  return out
end

local function tiers(keys, args)
  local s, no = shard_of(keys)
  if not s then return no end
  local u = numbers(s.usage, {'hot_count', 'hot_tokens', 'hot_bytes', 'warm_count', 'warm_tokens', 'warm_bytes', 'warm_frame_bytes',
    'cold_count', 'cold_tokens', 'cold_bytes', 'dirty_count', 'dirty_bytes', 'archived_count', 'archived_bytes', 'deleted_count'})
  local l = numbers(s.limits, {'hot_tokens', 'hot_bytes', 'warm_modules', 'warm_bytes'})
  local h = numbers(s.root .. 'hits', {'hot', 'warm', 'cold', 'regret', 'regret_tokens'})
  local lines = rows({'tier', '>modules', '>tokens', '>bytes', '>stored', '>of budget'}, {
    {'hot', commas(u.hot_count), commas(u.hot_tokens), size(u.hot_bytes), size(u.hot_bytes),
      part(u.hot_tokens, l.hot_tokens) .. ' tokens, ' .. part(u.hot_bytes, l.hot_bytes) .. ' bytes'},
    {'warm', commas(u.warm_count), commas(u.warm_tokens), size(u.warm_bytes), size(u.warm_frame_bytes),
      part(u.warm_count, l.warm_modules) .. ' modules, ' .. part(u.warm_frame_bytes, l.warm_bytes) .. ' bytes'},
    {'cold', commas(u.cold_count), commas(u.cold_tokens), size(u.cold_bytes), '-', '-'},
  })
  lines[#lines + 1] = string.format('archived: %s, %s stored', counted(u.archived_count, 'module'), size(u.archived_bytes))
  lines[#lines + 1] = string.format('not archived yet: %s, %s', counted(u.dirty_count, 'module'), size(u.dirty_bytes))
  local every = h.hot + h.warm + h.cold
  if every > 0 then
    lines[#lines + 1] = string.format('reads: %.1f%% without the archive (hot %s, warm %s, cold %s); %s evicted too early',
      100 * (h.hot + h.warm) / every, commas(h.hot), commas(h.warm), commas(h.cold), counted(h.regret, 'module'))
  end
  lines[#lines + 1] = 'eviction policy: ' .. s.policy .. (s.policy ~= 'lru' and not s.ranked and ' (still being ranked)' or '')
  if s.shards > 1 then lines[#lines + 1] = 'this is one of ' .. s.shards .. ' shards; distier stats adds them up' end
  local data = {policy = s.policy, shards = s.shards}
  for name, n in pairs(u) do data[name] = n end
  for name, n in pairs(l) do data['max_' .. name] = n end
  for name, n in pairs(h) do data['reads_' .. name] = n end
  return answer(args, data, lines)
end

-- The first or last ids of a set, with a column that says why they are there.
local TOP = {
  lru = {'hot', false, 'last used', function(s, n) return ago(s, n) end},
  mru = {'hot', true, 'last used', function(s, n) return ago(s, n) end},
  uses = {'uses', true, 'uses', function(_, n) return commas(n) end},
  due = {'warm', false, 'due in', function(s, n) return span(n - s.now) end},
  dirty = {'dirty', false, 'dirty since', function(s, n) return ago(s, n) end},
  pins = {'pins', false, 'pinned for', function(s, n) return span(n - s.now) end},
}
local LOOKED = 1000

local function biggest(s, most)
  local sizes, looked, all = {}, 0, 0
  for _, zset in ipairs({s.hot, s.warm}) do
    all = all + call('ZCARD', zset)
    for _, id in ipairs(call('ZRANGE', zset, 0, LOOKED - 1, 'REV')) do
      looked = looked + 1
      sizes[#sizes + 1] = {id, tonumber(call('HGET', record_key(s, id), 'bytes') or 0)}
    end
  end
  table.sort(sizes, function(a, b) return a[2] > b[2] or a[2] == b[2] and a[1] < b[1] end)
  local out = {}
  for i = 1, math.min(most, #sizes) do out[i] = {id = sizes[i][1], score = sizes[i][2], shown = size(sizes[i][2])} end
  return out, string.format('the %s that were used last in hot and warm were looked at, of %s', counted(looked, 'module'), commas(all))
end

local function top(keys, args)
  local s, no = shard_of(keys)
  if not s then return no end
  local given = without_map(args)
  local kind, most = given[1] or 'lru', tonumber(given[2] or 10)
  if not most or most < 1 or most > 100 then return fail('the number of modules is 1 to 100') end
  local found, note, column = {}, nil, 'bytes'
  if kind == 'biggest' then found, note = biggest(s, most)
  elseif TOP[kind] then
    local zset, last_first, show = s[TOP[kind][1]], TOP[kind][2], TOP[kind][4]
    column = TOP[kind][3]
    local flat = last_first and call('ZRANGE', zset, 0, most - 1, 'REV', 'WITHSCORES') or call('ZRANGE', zset, 0, most - 1, 'WITHSCORES')
    for i = 1, #flat, 2 do
      found[#found + 1] = {id = flat[i], score = tonumber(flat[i + 1]), shown = show(s, tonumber(flat[i + 1]))}
    end
  else return fail('top takes lru, mru, uses, due, dirty, pins or biggest, then a number of modules') end
  local body = {}
  for i, m in ipairs(found) do
    local f = call('HMGET', record_key(s, m.id), 'tier', 'tokens', 'bytes')
    m.tier, m.tokens, m.size_bytes = f[1] or 'none', tonumber(f[2] or 0), tonumber(f[3] or 0)
    body[i] = {m.id, m.tier, commas(m.tokens), size(m.size_bytes), m.shown}
    m.shown = nil
  end
  if args[#args] == 'map' then return listed(found) end
  local lines = #body > 0 and rows({'id', 'tier', '>tokens', '>bytes', '>' .. column}, body) or {'there is none'}
  lines[#lines + 1] = note
  return answer(args, {}, lines)
end

local function moves(keys, args)
  local s, no = shard_of(keys)
  if not s then return no end
  local given = without_map(args)
  local seconds, prefix = tonumber(given[1] or 60), given[2] or ''
  if not seconds or seconds < 0 then return fail('moves takes a number of seconds, then a prefix of ids') end
  local from = string.format('%.0f', math.max(0, s.now - seconds * 1000))
  local found, body = {}, {}
  local events = call('XREVRANGE', s.events, '+', from, 'COUNT', 200)
  for _, event in ipairs(events) do
    local f = {}
    for i = 1, #event[2], 2 do f[event[2][i]] = event[2][i + 1] end
    if f.id and string.sub(f.id, 1, #prefix) == prefix and f.from ~= f.to then
      local at = tonumber(string.match(event[1], '^%d+'))
      found[#found + 1] = {at_ms = at, id = f.id, from = f.from, to = f.to, reason = f.reason, version = f.version}
      body[#body + 1] = {ago(s, at), f.id ~= '' and f.id or '(shard)', f.from .. ' -> ' .. f.to, f.reason}
    end
  end
  if args[#args] == 'map' then return listed(found) end
  local lines = #body > 0 and rows({'when', 'id', 'move', 'reason'}, body) or {'nothing moved in the last ' .. span(seconds * 1000)}
  if #events == 200 then lines[#lines + 1] = 'only the last 200 events were looked at' end
  return answer(args, {}, lines)
end

local function health(keys, args)
  local s, no = shard_of(keys)
  if not s then return no end
  local lines, bad = {}, 0
  local function note(ok, text)
    bad = bad + (ok and 0 or 1)
    lines[#lines + 1] = (ok and 'ok    ' or 'LOOK  ') .. text
  end
  local info = redis.pcall('INFO', 'replication')
  local now_id = type(info) == 'string' and string.match(info, 'master_replid:(%x+)') or ''
  local alive = now_id == '' or now_id == s.replid
  note(alive, alive and 'epoch ' .. s.epoch_number .. ' since ' .. ago(s, s.since)
    or 'Redis restarted or failed over; the next call of a process installs a new epoch')
  local compared = tonumber(s.verified) >= tonumber(s.epoch_number)
  note(compared, compared and 'all records were compared with the archive in this epoch'
    or 'records are still compared with the archive one by one; distier rescue compares all')
  local holder, left = call('GET', s.root .. 'lease:%worker'), call('PTTL', s.root .. 'lease:%worker')
  note(holder, holder and 'worker ' .. string.gsub(holder, '^%d+:', '') .. ' maintains this shard' or 'no worker maintains this shard')
  local oldest = call('ZRANGE', s.dirty, 0, 0, 'WITHSCORES')
  local age = oldest[2] and s.now - tonumber(oldest[2]) or 0
  note(age < 600000, oldest[1] and 'the oldest module that is not archived waits since ' .. span(age) .. ': ' .. oldest[1]
    or 'everything is archived')
  local memory = redis.pcall('INFO', 'memory')
  if type(memory) == 'string' then
    local used = tonumber(string.match(memory, 'used_memory:(%d+)') or 0)
    local most = tonumber(string.match(memory, 'maxmemory:(%d+)') or 0)
    note(most == 0 or used < 0.9 * most, 'Redis uses ' .. size(used) .. (most > 0 and ' of ' .. size(most) or ', and has no maxmemory'))
  end
  table.insert(lines, 1, bad == 0 and 'healthy' or counted(bad, 'thing') .. ' to look at')
  local data = {healthy = bad == 0, epoch = tonumber(s.epoch_number), alive = alive, compared = compared,
    worker = holder and string.gsub(holder, '^%d+:', '') or nil, worker_lease_ms = holder and left or nil,
    oldest_dirty = oldest[1], oldest_dirty_ms = oldest[1] and age or nil}
  return answer(args, data, lines)
end

local function nodes(keys, args)
  local s, no = shard_of(keys)
  if not s then return no end
  local flat, body, found = call('ZRANGE', s.root .. 'nodes', 0, 99, 'WITHSCORES'), {}, {}
  for i = 1, #flat, 2 do
    local f = numbers(s.root .. 'nodes:' .. flat[i], {'modules', 'bytes', 'max_modules', 'max_bytes'})
    local here = call('SCARD', s.root .. 'held:' .. flat[i])
    local alive = tonumber(flat[i + 1]) > s.now
    found[#found + 1] = {node = flat[i], alive = alive, modules = f.modules, bytes = f.bytes, max_modules = f.max_modules,
      max_bytes = f.max_bytes, of_this_shard = here}
    body[#body + 1] = {flat[i], alive and 'alive' or 'silent', commas(f.modules), size(f.bytes), size(f.max_bytes), commas(here)}
  end
  if args[#args] == 'map' then return listed(found) end
  local none = 'no node keeps copies on a disk' .. (s.shards > 1 and ' (nodes are in the first shard)' or '')
  return answer(args, {}, #body > 0 and rows({'node', 'is', '>modules', '>bytes', '>of', '>of this shard'}, body) or {none})
end

local function help(_, args)
  local lines = {
    'distier functions, version ' .. VERSION .. ' (library ' .. LIBRARY .. ', layout ' .. LAYOUT .. ')',
    "FCALL_RO distier_where 1 'distier:{team}:' skills/pdf    where a module is",
    'the one key is the root of a shard; a last argument `map` asks for data',
    'FCALL_RO  where ID          where a module is',
    'FCALL_RO  explain ID        why it is there, and what would leave before it',
    'FCALL_RO  tiers             how full each tier is, and the hit ratio',
    'FCALL_RO  top KIND [N]      lru, mru, uses, due, dirty, pins, biggest',
    'FCALL_RO  moves [S] [PREFIX]  what moved in the last S seconds (60)',
    'FCALL_RO  health            epoch, worker, archive lag, memory',
    'FCALL_RO  nodes             nodes that keep copies on their disks',
    'FCALL     demote ID         one tier down; PREFIX* [MOST] for many',
    'FCALL     promote ID        to hot, where its copy in Redis is not compressed',
    'FCALL     pin ID SECONDS    keep it from being evicted',
    'FCALL     unpin ID          end the pin',
  }
  return answer(args, {version = VERSION, library = LIBRARY, layout = LAYOUT}, lines)
end
