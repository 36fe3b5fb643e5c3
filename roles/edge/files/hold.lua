-- Copyright: (c) 2026, the shannon.resilience authors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later
--
-- Holds requests while their cell moves: "http-request lua.hold <cells> <backend> <seconds> <most>".
--
-- The map says per cell, as the edge agent told it over the runtime API:
--   hold-<time>  requests wait; after that time (seconds since 1970) the word is void, so that an agent that died can't
--                hold a cell for ever
--   wait-<time>  the cell has moved: requests wait only until their backend has a usable server
-- A request goes on when no cell of <cells> (with commas between them) is held and <backend> has a usable server. After
-- <seconds> it goes on nevertheless, unless its cell is still held: then txn.hold is "late", as it is for a request whose
-- client went away. When <most> requests wait already, txn.hold is "full". The configuration answers both.

local STEP = 30 -- milliseconds; a request waits half of it on average after a release
local SEEN = 1 -- seconds after which a request that was not seen is taken for gone
local map = Map.new(os.getenv("EDGE_HOLD_MAP") or "/etc/shannon/edge/hold.map", Map._str)

-- All threads share this state (lua-load, not lua-load-per-thread), so the count is of the whole process.
local waiting = {} -- a token per request to the time when it was last seen
local count = 0
local swept = 0

-- Seconds by HAProxy's own clock, which does not jump.
local function now()
    local time = core.now()
    return time.sec + time.usec / 1000000
end

local function word(cells)
    local found = nil
    for cell in string.gmatch(cells, "[^,]+") do
        local said, time = string.match(map:lookup(cell) or "", "^(%a+)-(%d+%.?%d*)$")
        if said and os.time() < tonumber(time) then
            if said == "hold" then
                return said
            end
            found = said
        end
    end
    return found
end

local function usable(txn, backend)
    return txn.f:nbsrv(backend) > 0
end

-- A request whose client went away ends without a word to us, so places are taken back from those that show no life.
local function sweep(time)
    if time - swept < 0.1 then
        return
    end
    swept = time
    for token, seen in pairs(waiting) do
        if time - seen > SEEN then
            waiting[token] = nil
            count = count - 1
        end
    end
end

local function enter(token, most, time)
    if count >= most then
        sweep(time)
    end
    if count >= most then
        return false
    end
    waiting[token] = time
    count = count + 1
    return true
end

local function leave(token)
    if waiting[token] then
        waiting[token] = nil
        count = count - 1
    end
end

local function hold(txn, cells, backend, seconds, most)
    local said = word(cells)
    if not said or (said == "wait" and usable(txn, backend)) then
        return
    end
    local token, started = {}, now()
    if not enter(token, tonumber(most), started) then
        txn:set_var("txn.hold", "full")
        return
    end
    -- Until it is free to go: HAProxy ends this action, and goes on with its rules, when the client goes away.
    txn:set_var("txn.hold", "late")
    local free = true
    while said == "hold" or not usable(txn, backend) do
        local time = now()
        if time - started >= tonumber(seconds) then
            free = said ~= "hold"
            break
        end
        if not waiting[token] then
            count = count + 1 -- it was taken for gone while the whole process stood still
        end
        waiting[token] = time
        core.msleep(STEP)
        said = word(cells)
    end
    leave(token)
    if free then
        txn:unset_var("txn.hold")
    end
end

core.register_action("hold", {"http-req"}, hold, 4)
