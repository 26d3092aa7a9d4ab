-- flags:
-- Stores the frame of a clean version, which moves it from cold to warm. Also replaces a warm frame that expired or is damaged. This
-- ends a fetch from the archive, so it also releases the reader's lease and records its use, whatever becomes of the frame.
-- KEYS    1..9 the shard, 10 record, 11 frame, 12 lease, 13 mark of waiting readers, then record and frame of each move
-- ARGV    id, write id, codec, frame, reason (`predict:<probability of a use>`), the value of the caller's lease ('' none), uses, moves
-- RETURNS {'OK', evicted, dictionary, uses} | {'CHANGED', dictionary, uses} | {'TOO_LARGE', dictionary, uses}
--         | {'NOT_ADMITTED', dictionary, uses} | {'OVER', ..., dictionary, uses}; `uses` is the count of uses, -1 if none was recorded
-- KEEPS   modules leave warm for this one only if it is worth it by its uses for each byte (`drop_from_warm`), or if readers wait
--         for the copy; only the version that the caller read, and only if it is clean; a clean frame has a TTL, and names no other
--         dictionary than the current one; budgets
local refused = refuse()
if refused then return refused end
local id, record, frame = ARGV[1], KEYS[10], KEYS[11]
local old, now, uses = placed(record), now_ms(), '-1'
local reason, likely = string.match(ARGV[5], '^([^:]*):?(.*)$')
local waiting = call('EXISTS', KEYS[13]) == 1
if ARGV[6] ~= '' and call('GET', KEYS[12]) == ARGV[6] then call('DEL', KEYS[12], KEYS[13]) end
if ARGV[7] ~= '0' and old.tier ~= 'none' and old.tier ~= 'deleted' then
  uses = call('ZINCRBY', USES, ARGV[7], id)
  note_reads(old.tier, ARGV[7], old.tokens)
  if recording then record_uses(now, id, ARGV[7]) end
end
if old.write_id ~= ARGV[2] or not is_allowed(ARGV[3], old.clean) or not old.clean or (old.tier ~= 'cold' and old.tier ~= 'warm') then
  return {'CHANGED', dictionary, uses}
end
local limit = call('HMGET', LIMITS, 'warm_bytes', 'warm_modules')
if #ARGV[4] > tonumber(limit[1]) or limit[2] == '0' then return {'TOO_LARGE', dictionary, uses} end

if uses ~= '-1' then learn_from_ghost(id) end
count(old, -1)
count({tier = 'warm', tokens = old.tokens, bytes = old.bytes, clean = true, frame_bytes = #ARGV[4],
  archived_bytes = old.archived_bytes}, 1)
local moves, over = make_room(14, 8, id, now, not waiting and uses_of(id) + (tonumber(likely) or 0), #ARGV[4])
if not moves then
  if over == 'NOT_ADMITTED' then
    if uses ~= '-1' then remember_ghost(id, -1) end
    return {over, dictionary, uses}
  end
  over[6] = uses
  return over
end
local evicted = apply(moves, 'evict', now)
if old.tier == 'cold' then note_regret(record, now, old.tokens) end

call('HSET', record, 'tier', 'warm', 'codec', ARGV[3], 'frame_bytes', #ARGV[4], 'moved', move_of(now, old.tier, 'warm', reason))
call('SET', frame, ARGV[4])
keep_frame(id, frame, true, now)
settle()
if old.tier ~= 'warm' then emit(id, old.tier, 'warm', reason, old.version) end
return {'OK', evicted, dictionary, uses}
