-- flags: allow-oom
-- Deletes a module: all copies here go. A dirty tombstone stays until the archive has one too; where its place was reserved
-- and it is in the archive already, a clean one stays for a while.
-- KEYS    1..9 the shard, 10 record, 11 frame, 12 done
-- ARGV    id, tok, expected ('' any, 'epoch-ver'), reserved epoch, reserved ver ('' both: not archived)
-- RETURNS {'OK', version} | {'REPLAYED', version} | {'MISSING'} | {'CONFLICT', version} | {'UNVERIFIED'} | {'FENCED'} |
--         {'SUPERSEDED', version} | {'PASSED'}
-- KEEPS   the tombstone comes after every version before it in the order; a tok is applied once
local refused = refuse()
if refused then return refused end
local id, tok, record = ARGV[1], ARGV[2], KEYS[10]
local old, now, clean = placed(record), now_ms(), ARGV[4] ~= ''
local done = call('GET', KEYS[12])
if done then
  call('PEXPIRE', KEYS[12], 120000) -- a write, so that WAIT covers the first one
  return {'REPLAYED', done}
end
local epoch, ver = current_epoch, ARGV[5]
if clean and ARGV[4] ~= epoch then return {'FENCED'} end
if clean and comes_after(old, tonumber(epoch), tonumber(ver)) then return {'SUPERSEDED', old.version} end
if clean and passed(old, epoch, tonumber(ver), ARGV[3]) then return {'PASSED'} end
local conflict = unexpected(old, record, ARGV[3])
if conflict then return conflict end
local exists = old.tier ~= 'none' and old.tier ~= 'deleted'
if not exists and not clean then return {'MISSING'} end

if not clean then ver = call('HINCRBY', EPOCH, 'ver', 1) end
local version = epoch .. '-' .. ver
count(old, -1)
count({tier = 'deleted', bytes = 0, clean = clean}, 1)
call('ZREM', PINS, id)
local dirty_since = call('ZSCORE', DIRTY, id)
forget(id, record, KEYS[11])
if clean then bury(record, epoch, ver, tok, now)
else
  call('HSET', record, 'tier', 'deleted', 'epoch', epoch, 'ver', ver, 'tok', tok, 'seen', epoch, 'bytes', 0, 'clean', '0',
    'updated', now)
  call('ZADD', DIRTY, dirty_since or now, id)
end
call('SET', KEYS[12], version, 'PX', 120000)
settle()
if exists then emit(id, old.tier, 'deleted', 'delete', version) end
return {'OK', version}
