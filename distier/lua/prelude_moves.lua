-- Shared by the scripts that move modules, after prelude.lua: ranks, candidates to evict, moves, and room.

local function uses_of(id) return tonumber(call('ZSCORE', USES, id) or 0) end

-- Counts reads of the fleet. It is a hint, so a key of a wrong type or a refused command fails nothing.
local function note_reads(tier, reads, tokens)
  redis.pcall('HINCRBY', ROOT .. 'hits', tier, reads)
  redis.pcall('HINCRBY', ROOT .. 'hits', tier .. '_tokens', tokens)
end

-- The same for a module that comes back from the archive. Soon after its eviction, that is regretted.
local function note_regret(record, now, tokens)
  local at = string.match(call('HGET', record, 'moved') or '', '^(%d+) %a+ cold evict$')
  if at and now - tonumber(at) < REGRET_MS then note_reads('regret', 1, tokens) end
end

-- The field of EPOCH with the greatest rank that was evicted from a tier.
local function floor_of(rank) return rank == HOT_RANK and 'hot_floor' or 'warm_floor' end
-- The ids that lately left the small queue of a tier.
local function ghosts_of(rank) return ROOT .. 'ghosts:' .. (rank == HOT_RANK and 'hot' or 'warm') end
-- The rank that a module gets in a tier (`rank` is HOT_RANK or WARM_RANK) when it enters the tier, is used (`more` times), or is stored again. In hot,
-- `amount` is its tokens, in warm 1: the first budget there is a number of modules. `uses` is the count of uses, if not that of USES.
-- Its size is that in the unit of the budget that it strains more, in bytes (`size_of` in Python).
local function next_rank(rank, id, amount, bytes, more, uses)
  local l, first = limits(), rank == HOT_RANK and 1 or 3
  local size = math.max(bytes, amount * (l[first + 1] / math.max(l[first], 1)), 1)
  local was = tonumber(call('ZSCORE', rank, id) or nil)
  local known = not was and has_ghosts() and call('ZSCORE', ghosts_of(rank), id) and true or false
  local floor = has_floor() and tonumber(call('HGET', EPOCH, floor_of(rank)) or 0) or 0
  return rank_of(math.max(uses or uses_of(id), 1), size, clock, floor, was, more or 0, known)
end
local function set_rank(rank, id, amount, bytes, more)
  if not policy then return end
  call('ZADD', rank, string.format('%.17g', next_rank(rank, id, amount, bytes, more)), id)
  if has_ghosts() then call('ZREM', ghosts_of(rank), id) end
end

-- Sets the TTL of a warm frame, which was stored or used. It has one exactly while the version is clean.
local function keep_frame(id, frame_key, clean, now, more)
  local ttl = tonumber(call('HGET', LIMITS, 'warm_ttl_ms'))
  if clean then call('PEXPIRE', frame_key, ttl) else call('PERSIST', frame_key) end
  call('ZADD', WARM, score(ttl), id)
  if policy then set_rank(WARM_RANK, id, 1, call('STRLEN', frame_key), more) end
end

local function become_hot(id, tokens, bytes)
  call('ZREM', WARM, id)
  call('ZADD', HOT, score(), id)
  if policy then call('ZREM', WARM_RANK, id) end
  set_rank(HOT_RANK, id, tokens, bytes)
end

-- Removes the rank of a module that leaves a tier. If it is evicted, it keeps a part of its uses, the floor of the tier rises to its rank,
-- the modules before it that were spared get new ranks, and the ghosts remember it.
local function retire(rank, id, reason)
  if not policy then return end
  local was = tonumber(call('ZSCORE', rank, id) or nil)
  call('ZREM', rank, id)
  if not was or reason ~= 'evict' and reason ~= 'headroom' then return end
  if kept_uses() < 1 then call('ZADD', USES, 'XX', string.format('%.17g', uses_of(id) * kept_uses()), id) end
  if has_floor() and was > tonumber(call('HGET', EPOCH, floor_of(rank)) or 0) then
    call('HSET', EPOCH, floor_of(rank), string.format('%.17g', was))
  end
  if not has_ghosts() then return end
  local passed = call('ZRANGEBYSCORE', rank, was < 0 and '-inf' or 0, '(' .. string.format('%.17g', was), 'WITHSCORES', 'LIMIT', 0, 64)
  for i = 1, #passed, 2 do
    local spared = spared_rank(tonumber(passed[i + 1]), clock)
    if spared then call('ZADD', rank, string.format('%.17g', spared), passed[i]) end
  end
  if was < 0 then
    call('ZADD', ghosts_of(rank), clock, id)
    call('ZREMRANGEBYRANK', ghosts_of(rank), 0, -call('ZCARD', rank) - 2)
  end
end

-- Some ids in the order of eviction of a tier. With several queues, the small one comes first while it has more than a tenth of all
-- modules, and modules that are to be spared come last, because without others they leave too.
local function in_line(zset, from, to)
  if not ranked then return call('ZRANGE', zset, from, to) end
  local rank = zset == HOT and HOT_RANK or WARM_RANK
  if not has_ghosts() then return call('ZRANGE', rank, from, to) end
  local all, small = call('ZCARD', rank), call('ZCOUNT', rank, '-inf', '(0')
  local skip = small > 0.1 * all and 0 or small
  local rows, out, last = call('ZRANGE', rank, skip + from, skip + to, 'WITHSCORES'), {}, {}
  if #rows <= 2 * (to - from) and skip > 0 then
    local rest = call('ZRANGE', rank, math.max(0, skip + from - all), math.min(skip - 1, skip + to - all), 'WITHSCORES')
    for i = 1, #rest do rows[#rows + 1] = rest[i] end
  end
  for i = 1, #rows, 2 do
    local row = spared_rank(tonumber(rows[i + 1]), clock) and last or out
    row[#row + 1] = rows[i]
  end
  for _, id in ipairs(last) do out[#out + 1] = id end
  return out
end

-- The first 64 candidates of a set in the order of eviction, or all of them, without pinned modules and `id`. Rejected: as many
-- as suffice at the average size. The first ones may all be smaller, and the client could not distinguish a set without further
-- candidates from one of which too few were returned.
local function candidates(zset, id, now)
  local out, from, pins = {}, 0, call('ZCARD', PINS)
  repeat
    local batch = in_line(zset, from, from + 63)
    for _, victim in ipairs(batch) do
      local pin = pins > 0 and call('ZSCORE', PINS, victim)
      if victim ~= id and not (pin and tonumber(pin) > now) and #out < 64 then out[#out + 1] = victim end
    end
    from = from + 64
  until #batch < 64 or #out == 64 or from >= 4096
  return out
end

-- The reply of a script that changes nothing for lack of room: the excess in {hot tokens, hot bytes, warm modules, warm bytes},
-- the least recently used hot ids, the warm ids that are due first, and the current dictionary. There are no warm ids if warm has
-- room for all demotions from hot.
local function name_victims(over, id, now)
  local roomy = over[3] <= -64 and over[4] + tonumber(used[2] or 0) + (earlier.hot_bytes or 0) <= 0
  return {'OVER', {string.format('%.0f', over[1]), string.format('%.0f', over[2]), string.format('%.0f', over[3]),
    string.format('%.0f', over[4])}, candidates(HOT, id, now), roomy and {} or candidates(WARM, id, now), dictionary}
end

-- Ghosts of warm under `lru`, of one id in eight (`is_sampled` in Python): those that it refused and those that it evicted, scored by the
-- time, which is negative for the refused ones. At most a quarter as many are refused ones as warm has modules, and half as many evicted
-- ones. It is all a hint, so a key of a wrong type fails nothing.
local function is_sampled(id)
  if policy then return false end
  local sum = 0
  for _, byte in ipairs({string.byte(id, -16, -1)}) do sum = sum + byte end
  return sum % GHOSTS_PART == 0
end
local function remember_ghost(id, sign)
  if not is_sampled(id) then return end
  local ghosts, some = ghosts_of(WARM_RANK), math.floor(call('ZCARD', WARM) / 32)
  redis.pcall('ZADD', ghosts, sign * clock, id)
  local refused = redis.pcall('ZCOUNT', ghosts, '-inf', '(0')
  if type(refused) ~= 'number' then return end
  redis.pcall('ZREMRANGEBYRANK', ghosts, refused, -math.max(2, 2 * some) - 1)
  if refused > math.max(2, some) then redis.pcall('ZREMRANGEBYRANK', ghosts, math.max(2, some), refused - 1) end
end

-- A module is read and has no copy. If it was refused lately, warm should have been less strict; if it was evicted lately, stricter.
local function learn_from_ghost(id)
  local was = is_sampled(id) and redis.pcall('ZSCORE', ghosts_of(WARM_RANK), id)
  if type(was) ~= 'string' then return end
  call('ZREM', ghosts_of(WARM_RANK), id)
  local step = tonumber(was) < 0 and WORTH_STEP or 1 / WORTH_STEP
  victims_worth = math.min(math.max(victims_worth * step, 1), WORTH_MAX)
  call('HSET', EPOCH, 'worth', string.format('%.17g', victims_worth))
end

-- Whether a frame with this codec may be stored. One that was compressed with a dictionary needs that dictionary to be opened. So it is
-- never the only copy of a version, and it names the shard's current dictionary: a dictionary that is not current any more gets no new frames.
local function is_allowed(codec, clean)
  return string.sub(codec, 1, 5) ~= 'lz4d:' or clean and codec == 'lz4d:' .. dictionary
end

-- Moves: modules to move one tier down. ARGV[a] is their number, followed by five arguments each: id, write id, to ('warm' with a
-- frame, or 'cold'), codec, frame; KEYS[k..] has record and frame of each. A move whose module has changed is skipped: `why` gives
-- the reason, and its room is missing. A repeated id, and the module `subject` itself, are skipped too, because they would be
-- counted twice.
local function read_moves(k, a, subject, now)
  local moves, taken = {}, {[subject] = true}
  for i = 1, tonumber(ARGV[a]) do
    local m = {id = ARGV[a + 1], write_id = ARGV[a + 2], to = ARGV[a + 3], codec = ARGV[a + 4], frame = ARGV[a + 5],
      key = KEYS[k], frame_key = KEYS[k + 1]}
    m.was = placed(m.key)
    local pin = call('ZSCORE', PINS, m.id)
    if taken[m.id] then m.why = 'changed'
    elseif m.was.tier == m.to then m.why = 'already'
    elseif m.was.write_id ~= m.write_id then m.why = 'changed'
    elseif pin and tonumber(pin) > now then m.why = 'pinned'
    elseif m.to == 'warm' and m.was.tier ~= 'hot' then m.why = 'already'
    elseif m.to == 'cold' and not m.was.clean then m.why = 'dirty'
    elseif not is_allowed(m.codec, m.was.clean) then m.why = 'changed'
    elseif m.was.tier == 'none' or m.was.tier == 'deleted' then m.why = 'changed' end
    moves[i] = m
    if not m.why then taken[m.id] = true end
    a, k = a + 5, k + 2
  end
  return moves
end
local function weigh(moves, sign)
  for _, m in ipairs(moves) do
    if not m.why then
      m.now = {tier = m.to, tokens = m.was.tokens, bytes = m.was.bytes, clean = m.was.clean,
        frame_bytes = #m.frame, archived_bytes = m.was.archived_bytes}
      count(m.was, -sign)
      count(m.now, sign)
    end
  end
end
-- Rewrites the record without its content. A hash that had content stays a hash table without it, and takes three times the
-- memory of the same fields in a listpack.
local function drop_content(record)
  call('HDEL', record, 'content')
  local fields = call('HGETALL', record)
  call('UNLINK', record)
  call('HSET', record, unpack(fields))
end
local function apply(moves, reason, now)
  local done = 0
  for _, m in ipairs(moves) do
    if not m.why then
      local moved = move_of(now, m.was.tier, m.to, reason)
      if m.was.tier == 'hot' then drop_content(m.key) else call('HDEL', m.key, 'codec', 'frame_bytes') end
      if m.was.tier == 'hot' then
        call('ZREM', HOT, m.id)
        retire(HOT_RANK, m.id, reason)
        if not policy then call('ZREM', USES, m.id) end -- uses count towards the next promotion; ranks need them
      end
      if m.to == 'warm' then
        call('HSET', m.key, 'tier', 'warm', 'codec', m.codec, 'frame_bytes', #m.frame, 'moved', moved)
        call('SET', m.frame_key, m.frame)
        keep_frame(m.id, m.frame_key, m.was.clean, now)
      else
        call('HSET', m.key, 'tier', 'cold', 'moved', moved)
        call('UNLINK', m.frame_key)
        call('ZREM', WARM, m.id)
        retire(WARM_RANK, m.id, reason)
        if reason == 'evict' and m.was.tier == 'warm' then remember_ghost(m.id, 1) end
      end
      emit(m.id, m.was.tier, m.to, reason, m.was.version)
      done = done + 1
    end
  end
  return done
end

-- Halves all counts of uses; those below one half are removed.
local function halve_uses(call)
  call('ZUNIONSTORE', USES, 1, USES, 'WEIGHTS', '0.5')
  call('ZREMRANGEBYSCORE', USES, '-inf', '(0.5')
  if halves_ranks() then
    for _, rank in ipairs({HOT_RANK, WARM_RANK}) do call('ZUNIONSTORE', rank, 1, rank, 'WEIGHTS', '0.5') end
  end
end

-- Whether a module with these uses and this size may take the place of modules that have `theirs` and `freed` together: it must have a
-- part (an eighth, and in warm 1 / `worth`) of their uses for each byte (or token, or module: the unit of the budget). That is the order of
-- GDSF (Cherkasova 1998) with equal costs; the uses of those that leave count less, because they are the oldest.
local function is_worth(uses, size, theirs, freed, worth) return (worth or VICTIMS_WORTH) * uses * freed >= theirs * size end

-- Returns clean modules that leave warm as well as `moves`, those that are due first, so that the change fits. That needs no client: a
-- frame is dropped without being compressed or sent. Returns nil if the change does not fit without the client. With `worth`, the uses
-- of the module that comes, it returns nil, 'NOT_ADMITTED' if those that leave are worth more (`is_worth`, by the sizes of frames, or by
-- modules if warm holds too many of them and not too many bytes). Under another policy than `lru`, it must rank higher than each of
-- those. On a cluster whose slot is moving to another node, a key that is not among KEYS and is not here is an error, so a victim's keys
-- are looked at before the first write, and such an error is no victim.
local function drop_from_warm(moves, id, now, worth, size)
  local pins, taken, dropped, _, over = call('ZCARD', PINS), {[id] = true}, {}, budgets()
  local uses, freed = 0, 0
  local rank = worth and policy and not admits_all() and next_rank(WARM_RANK, id, 1, size, 1, worth)
  for _, m in ipairs(moves) do taken[m.id] = true end
  for _, victim in ipairs(in_line(WARM, 0, 127)) do
    local pin = pins > 0 and call('ZSCORE', PINS, victim)
    if not taken[victim] and not (pin and tonumber(pin) > now) then
      local key, frame_key = keys_of(victim)
      if type(redis.pcall('EXISTS', key, frame_key)) ~= 'number' then break end
      local m = {id = victim, to = 'cold', frame = '', key = key, frame_key = frame_key, was = placed(key)}
      if m.was.tier == 'warm' and m.was.clean then
        if rank and rank <= tonumber(call('ZSCORE', WARM_RANK, victim) or 0) then
          weigh(dropped, -1)
          return nil, 'NOT_ADMITTED'
        end
        dropped[#dropped + 1] = m
        weigh({m}, 1)
        if worth and not policy then uses, freed = uses + uses_of(victim), freed + m.was.frame_bytes end
        if budgets() then
          if over[4] <= 0 then freed, size = #dropped, 1 end
          if policy or not worth or is_worth(worth, size, uses, freed, victims_worth) then return dropped end
          weigh(dropped, -1)
          return nil, 'NOT_ADMITTED'
        end
        if #dropped == 64 then break end
      end
    end
  end
  weigh(dropped, -1)
  return nil
end

-- Counts the moves too if the change does not fit without them, and then clean modules that leave warm. Returns the moves to apply,
-- or nil and the reply that names victims, or nil and 'NOT_ADMITTED' if what leaves is worth more (`drop_from_warm`). Nothing has been written yet.
local function make_room(k, a, id, now, worth, size)
  local fits, over = budgets()
  if fits then return {} end
  local moves = read_moves(k, a, id, now)
  weigh(moves, 1)
  local fits_now, _, hot_fits = budgets()
  if fits_now then return moves end
  local dropped, no
  if hot_fits then dropped, no = drop_from_warm(moves, id, now, worth, size) end
  if dropped then
    for _, m in ipairs(dropped) do moves[#moves + 1] = m end
    return moves
  end
  weigh(moves, -1)
  if no then return nil, no end
  return nil, name_victims(over, id, now)
end
