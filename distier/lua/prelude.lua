-- Shared by all scripts; put before each of them when it is loaded.
-- KEYS[1..9] are the shard's own keys; after them each script takes what its header says.
local EPOCH, LIMITS, USAGE, HOT, WARM, DIRTY, USES, PINS, EVENTS =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local call = redis.call
local LAYOUT = '1'

-- Redis does not undo what a script wrote before it failed. So a shard's key of a foreign type fails the call here, and the
-- keys of modules are read before the first write.
call('ZINTERCARD', 5, PINS, HOT, WARM, DIRTY, USES, 'LIMIT', 1)
call('HLEN', LIMITS) call('HLEN', USAGE) call('XLEN', EVENTS)

-- The shard's clock, in ms: one clock for all nodes. It is the server's, but never goes back: a server that is set back, or one
-- behind it that takes over, would turn the order of last uses round. While it lags, each use counts one microsecond on.
local clock
local function now_ms()
  local t = call('TIME')
  clock = math.max(t[1] * 1000 + t[2] / 1000, (tonumber(call('HGET', EPOCH, 'clock')) or 0) + 0.001)
  return math.floor(clock)
end
-- A score for this moment, or `after` ms later, greater than all that were given before with the same `after`.
local noted
local function score(after)
  if not noted then call('HSET', EPOCH, 'clock', string.format('%.3f', clock)) noted = true end
  return string.format('%.3f', clock + (after or 0))
end

-- The replication id of this server: another one after each restart, promotion, or loss. '' where INFO is not to be had.
local function replid()
  local info = redis.pcall('INFO', 'replication')
  return type(info) == 'string' and string.match(info, 'master_replid:(%x+)') or ''
end

-- nil where this shard is in good order; else what to answer instead of doing anything. The epoch belongs to the incarnation of
-- the server that it was installed in: another incarnation may have lost acknowledged writes, and must claim a new one.
local current_epoch
local function refuse()
  local e, incarnation = call('HMGET', EPOCH, 'epoch', 'layout', 'replid'), replid()
  if e[2] and e[2] ~= LAYOUT then return {'LAYOUT', e[2]} end
  if not e[1] or incarnation ~= '' and e[3] ~= incarnation then return {'RECOVERING'} end
  current_epoch = e[1]
  return nil
end

-- What a record says of where its module is; tier 'none' where there is no record. A damaged one counts as the version 0-0:
-- any write comes after it and makes it whole.
local function placed(key)
  local f = call('HMGET', key, 'tier', 'tok', 'tokens', 'bytes', 'clean', 'frame_bytes', 'archived_bytes', 'epoch', 'ver',
    'created', 'reserved')
  local function number(i) return tonumber(f[i] or 0) or 0 end
  return {
    tier = f[1] or 'none', tok = f[2] or '', tokens = number(3), bytes = number(4), clean = f[5] == '1', epoch = number(8),
    ver = number(9), frame_bytes = number(6), archived_bytes = number(7),
    version = f[1] and ((f[8] or '0') .. '-' .. (f[9] or '0')) or '', created = f[10], reserved = f[11] or '',
  }
end

-- Accounting: `count(p, -1)` takes a placement out of the sums, `count(p, 1)` puts it in; `next_change` begins one of
-- several changes, each of which is weighed by itself; `settle` writes them all.
local delta, earlier = {}, {}
local function add(field, n)
  if n ~= 0 then delta[field] = (delta[field] or 0) + n end
end
local function count(p, sign)
  if p.tier == 'none' or p.tier == 'deleted' and p.clean then return end
  add(p.tier .. '_count', sign)
  if not p.clean then add('dirty_count', sign) add('dirty_bytes', sign * p.bytes) end
  if p.tier == 'deleted' then return end
  add(p.tier .. '_tokens', sign * p.tokens)
  add(p.tier .. '_bytes', sign * p.bytes)
  if p.tier == 'warm' then add('warm_frame_bytes', sign * p.frame_bytes) end
  if p.clean then add('archived_count', sign) add('archived_bytes', sign * p.archived_bytes) end
end
local function next_change()
  for field, n in pairs(delta) do earlier[field] = (earlier[field] or 0) + n end
  delta = {}
end
local function settle()
  next_change()
  for field, n in pairs(earlier) do
    if n ~= 0 then call('HINCRBY', USAGE, field, string.format('%.0f', n)) end
  end
end

-- The four budgets, with what the change counted so far would do to them, after the earlier ones. A budget counts only against a
-- change that adds to it: a lowered limit stops growth and never a move that frees. `settle` is what writes USAGE, at the
-- end, so both are read once.
local limit, used
local function limits()
  limit = limit or call('HMGET', LIMITS, 'hot_tokens', 'hot_bytes', 'warm_modules', 'warm_bytes')
  return limit
end
local function budgets()
  limits()
  used = used or call('HMGET', USAGE, 'hot_tokens', 'hot_bytes', 'warm_count', 'warm_frame_bytes')
  local fields = {'hot_tokens', 'hot_bytes', 'warm_count', 'warm_frame_bytes'}
  local over, fits = {}, true
  for i, field in ipairs(fields) do
    local change = delta[field] or 0
    over[i] = tonumber(used[i] or 0) + (earlier[field] or 0) + change - tonumber(limit[i])
    if change > 0 and over[i] > 0 then fits = false end
  end
  return fits, over
end

-- The first 64 of a set in the order in which they should go, or all that may; pinned ones and `id` are passed over. Not
-- as many as should do at the average size: those that go first may all be smaller than that, and the client cannot tell a
-- set that has no more from one of which too few were named.
local function candidates(zset, id, now)
  local out, from, pins = {}, 0, call('ZCARD', PINS)
  repeat
    local batch = call('ZRANGE', zset, from, from + 63)
    for _, victim in ipairs(batch) do
      local pin = pins > 0 and call('ZSCORE', PINS, victim)
      if victim ~= id and not (pin and tonumber(pin) > now) and #out < 64 then out[#out + 1] = victim end
    end
    from = from + 64
  until #batch < 64 or #out == 64 or from >= 4096
  return out
end

-- The answer that changes nothing and says what is missing: over by {hot tokens, hot bytes, warm modules, warm
-- bytes}, the least recently used hot ids, the warm ids that are due first; none of these where warm has room for all that
-- hot could send there.
local function name_victims(over, id, now)
  local roomy = over[3] <= -64 and over[4] + tonumber(used[2] or 0) + (earlier.hot_bytes or 0) <= 0
  return {'OVER', {string.format('%.0f', over[1]), string.format('%.0f', over[2]), string.format('%.0f', over[3]),
    string.format('%.0f', over[4])}, candidates(HOT, id, now), roomy and {} or candidates(WARM, id, now)}
end

local events_max
local function emit(id, from, to, reason, version)
  events_max = events_max or call('HGET', LIMITS, 'events_max') or '10000'
  call('XADD', EVENTS, 'MAXLEN', '~', events_max, '*',
    'id', id, 'from', from, 'to', to, 'reason', reason, 'version', version)
end

-- A tombstone that is archived stays for ten minutes, so that an older durable write under way cannot come after it.
local function bury(record, epoch, ver, tok, now)
  call('HSET', record, 'tier', 'deleted', 'epoch', epoch, 'ver', ver, 'tok', tok, 'seen', call('HGET', EPOCH, 'epoch'),
    'bytes', 0, 'clean', '1', 'updated', now)
  call('PEXPIRE', record, 600000)
end

-- Whether `old` comes after the version epoch-ver.
local function comes_after(old, epoch, ver)
  return old.tier ~= 'none' and (old.epoch > epoch or old.epoch == epoch and old.ver > ver)
end

-- Whether a record, or that there is none, is known to be the newest: one of an older epoch is not before it has been compared
-- with the archive.
local function is_checked(record)
  local e = call('HMGET', EPOCH, 'epoch', 'verified')
  return math.max(tonumber(call('HGET', record, 'seen') or 0), tonumber(e[2] or 0)) >= tonumber(e[1])
end

-- The position that a durable write holds in front of a record: `epoch-ver-deleted-tok`; worth nothing in another epoch. It stays
-- over unconditional writes (`deleted` is 1 once one of them was a delete), and ends when its holder is applied, or when a conditional
-- or durable write passes it because its holder seems to have died. So a holder that finds it gone knows that it was passed, and
-- one that finds it knows that only unconditional writes came. Returns ver (0: there is none), tok, deleted.
local function reservation(old, epoch)
  local e, ver, deleted, tok = string.match(old.reserved, '^(%d+)-(%d+)-(%d+)-(%x*)$')
  if e ~= epoch then return 0, '', false end
  return tonumber(ver), tok, deleted ~= '0'
end
-- What keeps a conditional write out: another one's position, unless the caller has watched this holder for long enough.
local function busy(old, epoch, tok, given_up)
  local place, holder = reservation(old, epoch)
  if place > 0 and holder ~= tok and holder ~= given_up then return {'BUSY', holder} end
  return nil
end
-- nil where a write that is in the archive as epoch-ver may be applied; else what to answer. Whoever does not hold its position
-- cannot tell what became of its object: somebody may have adopted it, and others may have changed the module since.
local function not_applicable(old, epoch, ver, tok)
  if old.epoch == tonumber(epoch) and old.ver == ver and string.sub(old.tok, 1, 8) == string.sub(tok, 1, 8) then
    return {'REPLAYED', old.version, old.tier} -- adopted
  end
  local place, holder, deleted = reservation(old, epoch)
  if place ~= ver or holder ~= tok then return {'UNHELD'} end
  if comes_after(old, tonumber(epoch), ver) then return {'SUPERSEDED', old.version, deleted and '1' or '0'} end
  return nil
end
-- The reservation as an unconditional write leaves it.
local function kept_reservation(old, epoch, deletes)
  local place, holder, deleted = reservation(old, epoch)
  if place == 0 then return nil end
  return string.format('%s-%.0f-%d-%s', epoch, place, (deleted or deletes) and 1 or 0, holder)
end

-- Writes that were applied, by tok, so that one that is sent again is answered and not applied again: the last 8192 of the shard,
-- each in the place of the one that many versions before it. (A TTL would end by a clock that jumps, or by an eviction.)
local DONE_MAX = 8192
local function remember(done, tok, version, ver)
  local place = '#' .. string.format('%.0f', tonumber(ver) % DONE_MAX)
  local before = call('HGET', done, place)
  if before then call('HDEL', done, before) end
  call('HSET', done, place, tok, tok, version)
end
-- What to answer a write that was sent before, without an answer, and is not remembered; nil where it was certainly not applied.
-- `since` is a version from before it was first sent ('' where this is the first time): it was applied after that, if at all.
-- So nothing was applied where the record is not newer, or fewer versions were given since than are remembered.
local function maybe_applied(old, record, since)
  if since == '' then return nil end
  local e, v = string.match(since, '^(%d+)-(%d+)$')
  e, v = tonumber(e), tonumber(v)
  local now = call('HMGET', EPOCH, 'epoch', 'ver')
  if e == tonumber(now[1]) and tonumber(now[2]) - v < DONE_MAX then return nil end
  if not is_checked(record) then return {'UNVERIFIED'} end
  if not comes_after(old, e, v) then return nil end
  return {'UNKNOWN', old.version}
end

-- What to answer where the caller expects another version than there is.
local function unexpected(old, record, expected)
  if expected == '' then return nil end
  if not is_checked(record) then return {'UNVERIFIED'} end
  local exists = old.tier ~= 'none' and old.tier ~= 'deleted'
  if expected == '-' and exists or expected ~= '-' and not (exists and expected == old.version) then
    return {'CONFLICT', exists and old.version or ''}
  end
  return nil
end

-- What keeps a write from being applied, before anybody looks for room; nil where nothing does. A write that is in the archive has
-- its position in `reserved` (the epoch; '' for all others) and `ver`.
local function refuse_write(old, record, tok, expected, reserved, ver, since)
  local version, given_up = string.match(expected, '^([^/]*)/?(.*)$')
  if reserved == '' then
    return maybe_applied(old, record, since) or unexpected(old, record, version)
      or version ~= '' and busy(old, current_epoch, tok, given_up) or nil
  end
  if reserved ~= current_epoch then return {'FENCED'} end
  return not_applicable(old, reserved, tonumber(ver), tok) or unexpected(old, record, version)
end

-- Takes a module out of all sets; its keys go, `record` too.
local function forget(id, record, frame)
  call('UNLINK', record, frame)
  for _, zset in ipairs({HOT, WARM, DIRTY, USES}) do call('ZREM', zset, id) end
end

-- Warm frames: a TTL exactly while the version is clean.
local function keep_frame(id, frame_key, clean, now)
  local ttl = tonumber(call('HGET', LIMITS, 'warm_ttl_ms'))
  if clean then call('PEXPIRE', frame_key, ttl) else call('PERSIST', frame_key) end
  call('ZADD', WARM, score(ttl), id)
end

-- Moves: victims that go one step down. ARGV[a] is their number, then five arguments each: id, tok, to
-- ('warm' with a frame, or 'cold'), codec, frame; KEYS[k..] has record and frame key of each. A move whose
-- victim has changed meanwhile is left out: `why` then says so, and the room that it would have made is missing. So is
-- one that was named before, or that is the module `subject` itself: it would be counted twice.
local function read_moves(k, a, subject, now)
  local moves, taken = {}, {[subject] = true}
  for i = 1, tonumber(ARGV[a]) do
    local m = {id = ARGV[a + 1], tok = ARGV[a + 2], to = ARGV[a + 3], codec = ARGV[a + 4], frame = ARGV[a + 5],
      key = KEYS[k], frame_key = KEYS[k + 1]}
    m.was = placed(m.key)
    local pin = call('ZSCORE', PINS, m.id)
    if taken[m.id] then m.why = 'changed'
    elseif m.was.tier == m.to then m.why = 'already'
    elseif m.was.tok ~= m.tok then m.why = 'changed'
    elseif pin and tonumber(pin) > now then m.why = 'pinned'
    elseif m.to == 'warm' and m.was.tier ~= 'hot' then m.why = 'already'
    elseif m.to == 'cold' and not m.was.clean then m.why = 'dirty'
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
-- The record without its content, written anew: a hash that has held it stays a hash table when it goes, and takes three times
-- the memory that the same fields take in a listpack.
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
      if m.was.tier == 'hot' then drop_content(m.key) else call('HDEL', m.key, 'codec', 'frame_bytes') end
      call('ZREM', HOT, m.id)
      call('ZREM', USES, m.id) -- uses count towards the next promotion
      if m.to == 'warm' then
        call('HSET', m.key, 'tier', 'warm', 'codec', m.codec, 'frame_bytes', #m.frame)
        call('SET', m.frame_key, m.frame)
        keep_frame(m.id, m.frame_key, m.was.clean, now)
      else
        call('HSET', m.key, 'tier', 'cold')
        call('UNLINK', m.frame_key)
        call('ZREM', WARM, m.id)
      end
      emit(m.id, m.was.tier, m.to, reason, m.was.version)
      done = done + 1
    end
  end
  return done
end

-- Counts the moves in if the change counted so far does not fit without them. Answers the moves to apply, or
-- nil and the answer that names victims. Nothing has been written yet.
local function make_room(k, a, id, now)
  local fits, over = budgets()
  if fits then return {} end
  local moves = read_moves(k, a, id, now)
  weigh(moves, 1)
  if budgets() then return moves end
  weigh(moves, -1)
  return nil, name_victims(over, id, now)
end
