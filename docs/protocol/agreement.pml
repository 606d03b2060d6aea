/*
 * Step agreement with views. README.md in this directory lists the abstractions and the findings.
 *
 * The promise: in one lineage of training, all ranks that run a step run it with the same configuration (`run_step`),
 * and at the end of every execution each rank has left its loop (no invalid end state). Every counter is bounded and
 * never reset, so every execution is finite: "no invalid end state" also means that no process waits permanently.
 *
 * Each etcd transaction is one atomic step. Values that it does not compare were read earlier and may be stale.
 * Messages have no queues: a delivery is an optional step, so it may come arbitrarily late or never.
 *
 * Macros MUTANT_* break one rule each; LIMIT_* exceeds what is promised. scripts/spin.sh lists those that must fail.
 */

/* -- bounds -------------------------------------------------------------------------------------------------------- */

#ifndef RANKS
#define RANKS 2         /* 2: nodes {0} {1}; 3: nodes {0,1} {2} */
#endif
#ifndef STEPS
#define STEPS 3
#endif
#ifndef PLANS
#define PLANS 2
#endif
#ifndef CRASHES
#define CRASHES 2       /* of workers */
#endif
#ifndef FORGETS
#define FORGETS 1       /* crashes of agents */
#endif
#ifndef ELECTIONS
#define ELECTIONS 1     /* changes of leader after the first */
#endif

#define NODES 2
#define NODE(r) ((r) * NODES / RANKS)
#define ALL_NODES ((1 << NODES) - 1)
#define ALL_RANKS ((1 << RANKS) - 1)

/* Configurations are numbered: 0 is the first one, 1..PLANS the one that plan p proposes, higher numbers are the
   desired values at the time when a view of only new workers was formed. */
#define CONFIGS (PLANS + 1 + CRASHES)

/* -- etcd ---------------------------------------------------------------------------------------------------------- */

#define NONE 0
#define COMMIT 1
#define ABORT 2

byte token = 1;                 /* state/leader: odd tokens are leader 1's, even ones leader 0's */
byte view = 1;                  /* state/view: number */
byte member[RANKS];             /*             the incarnation of each rank */
byte start_values;              /*             what its new workers start with: `agreed` as the view was formed */
bool start_settled = true;      /*             true: without `previous` */
byte agreed;                    /* state/agreed: values; `gate` and `previous` of them: */
byte gate[CONFIGS];             /*   state/plans/<p>: gate. 0 where the values hold from the start */
byte previous[CONFIGS];
byte plans;                     /* state/plans: number of the newest */
byte plan_view[PLANS + 1];      /* state/plans/<p>: view */
byte decision[PLANS + 1];       /* state/plans/<p>/decision */
byte acks;                      /* reports/acks/<newest plan>: bit set of nodes */
byte receipts = ALL_RANKS;      /* ranks that have applied `agreed`; etcd may learn it late */
byte incarnation[RANKS];        /* reports/members/<rank>: the latest to register */

/* -- workers and agents: state in memory that others may query ----------------------------------------------------- */

byte promise[RANKS];            /* worker: the plan whose gate it does not pass before it knows the decision; 0: none */
bool left[RANKS];               /* worker: its loop has ended */
byte heard[NODES];              /* agent: local ranks known to be armed for plan `heard_of` */
byte heard_of[NODES];

/* -- the training, as an observer sees it -------------------------------------------------------------------------- */

byte started[RANKS];            /* newest step that each rank has contributed to */
byte parts[STEPS + 1];          /* ranks that have contributed to the step */
byte used[STEPS + 1];           /* the configuration that it runs with; reset to 0 when every rank has contributed */
byte finished;                  /* newest step that a rank has completed */
byte running;                   /* workers that hold training state */
byte gone;                      /* workers whose loop has ended */
byte crashes = CRASHES;
byte forgets = FORGETS;

#if RANKS == 2
#define EVERY_RANK_STARTED(s) (started[0] >= s && started[1] >= s)
#define SOME_NEW (incarnation[0] != member[0] || incarnation[1] != member[1])
#define ALL_NEW (incarnation[0] != member[0] && incarnation[1] != member[1])
#elif RANKS == 3
#define EVERY_RANK_STARTED(s) (started[0] >= s && started[1] >= s && started[2] >= s)
#define SOME_NEW (incarnation[0] != member[0] || incarnation[1] != member[1] || incarnation[2] != member[2])
#define ALL_NEW (incarnation[0] != member[0] && incarnation[1] != member[1] && incarnation[2] != member[2])
#endif

#ifdef NO_COLLECTIVE    /* ranks drift apart freely; only without crashes: no common step to restart from */
#define MAY_LEAVE_STEP(s) true
#else
#define MAY_LEAVE_STEP(s) EVERY_RANK_STARTED(s)
#endif

#define OPEN(p) ((p) != 0 && decision[p] == NONE)

/* Create-only: later attempts do not change the first decision. */
inline decide(p, d) {
  if
  :: decision[p] == NONE -> decision[p] = d
  :: else
  fi
}

inline run_step(me) {
  started[me] = step;
  if
  :: parts[step] == 0 -> used[step] = config
  :: else -> assert(used[step] == config)     /* the promise */
  fi;
  parts[step] = parts[step] | (1 << me);
  if
  :: parts[step] == ALL_RANKS -> used[step] = 0
  :: else
  fi
}

inline lose_part(me) {
  started[me] = step - 1;
  parts[step] = parts[step] & ~(1 << me);
  if
  :: parts[step] == 0 -> used[step] = 0
  :: else -> used[step] = config
  fi
}

/* -- a worker: one process for all incarnations of a rank ---------------------------------------------------------- */

inline crash(me) {
  crashes--;
  promise[me] = 0; step = 0; config = 0
}

/* No worker holds training state any more: the first process resumes from some checkpoint, and the others resume at
   the same step. The control plane is not notified: it may assume that the others still run. */
inline rewind() {
  select(step : 1 .. finished + 1);
  finished = step - 1;
  i = 0;
  do
  :: i < RANKS -> started[i] = finished; i++
  :: else -> break
  od;
  i = 1;
  do
  :: i <= STEPS ->
     used[i] = 0;
     if
     :: i < step -> parts[i] = ALL_RANKS
     :: else -> parts[i] = 0
     fi;
     i++
  :: else -> break
  od;
  i = 0
}

/* It starts at the first step that its rank has not contributed to: the survivors wait at it, or will stall in it. */
inline join_view(me) {
  if
  :: running == 0 && gone == 0 -> rewind()
  :: else -> step = started[me] + 1
  fi;
  running++;
#ifdef MUTANT_NEWCOMER_IGNORES_GATE
  config = start_values
#else
  if
  :: start_settled -> config = start_values
  :: else -> config = previous[start_values]; promise[me] = start_values
  fi
#endif
}

inline pass_gate(me) {
  if
  :: promise[me] != 0 && gate[promise[me]] <= step ->
#ifndef MUTANT_GATE_WITHOUT_ABORT
     decide(promise[me], ABORT);
#endif
     if
     :: decision[promise[me]] == COMMIT ->
        config = promise[me];
        if
        :: config == agreed -> receipts = receipts | (1 << me)
        :: else
        fi
     :: else
     fi;
     promise[me] = 0
  :: else
  fi
}

#ifdef MUTANT_WAIT_AT_GATE
#define MAY_PASS(me) (promise[me] == 0 || gate[promise[me]] > step || decision[promise[me]] != NONE)
#else
#define MAY_PASS(me) true
#endif

#ifdef MUTANT_PROMISE_TWO
#define MAY_PROMISE(me) (promise[me] != plans)
#else
#define MAY_PROMISE(me) (promise[me] == 0)
#endif

proctype Worker(byte me) {
  byte step = 1;
  byte config = 0;
  byte i = 0;

boundary:
  do
  :: atomic { step > STEPS -> left[me] = true; gone++; running--; promise[me] = 0; step = 0; config = 0; goto over }

     /* The inbox brings the newest plan: promise, or refuse when it comes too late. A worker that has not passed
        an earlier gate does not promise: `agreed` holds only one previous configuration. */
  :: atomic { step <= STEPS && OPEN(plans) && plan_view[plans] == view && MAY_PROMISE(me) ->
       if
#ifdef MUTANT_LATE_PROMISE
       :: true -> promise[me] = plans
#else
       :: step <= gate[plans] -> promise[me] = plans
       :: else -> decide(plans, ABORT)
#endif
       fi }

     /* The inbox brings an abort. */
  :: atomic { step <= STEPS && promise[me] != 0 && promise[me] <= PLANS && decision[promise[me]] == ABORT ->
       promise[me] = 0 }

     /* The gate, then into the step. */
  :: atomic { step <= STEPS && MAY_PASS(me) ->
       pass_gate(me);
       run_step(me);
       goto inside }

  :: atomic { step <= STEPS && crashes > 0 -> crash(me); running--; goto dead }

#ifdef LIMIT_EVICTED_RUNS_ON
  :: atomic { step <= STEPS && promise[me] == 0 && crashes > 0 && running > 1 ->
       run Evicted(me, step, config); crash(me); running--; goto dead }
#endif
  od;

inside:  /* the collective: no rank leaves it before all have entered */
  if
  :: atomic { MAY_LEAVE_STEP(step) ->
       if
       :: finished < step -> finished = step
       :: else
       fi;
       step++;
       goto boundary }
     /* It dies in a step. Either its contribution is lost and the step is repeated with its successor, or it counts. */
  :: atomic { crashes > 0 && finished < step -> lose_part(me); crash(me); running--; goto dead }
  :: atomic { crashes > 0 -> crash(me); running--; goto dead }
  fi;

dead:
  atomic { incarnation[me]++ };

waiting:  /* join() */
  if
  :: atomic { member[me] == incarnation[me] -> join_view(me); goto boundary }
  :: atomic { crashes > 0 -> crash(me); goto dead }
  fi;

over:
  skip
}

#ifdef LIMIT_EVICTED_RUNS_ON
/* A partitioned worker that still runs while another one registers as its rank, and whose collectives still reach the
   others. It receives nothing until it stops. (To keep the model small, it has promised nothing.) */
proctype Evicted(byte me; byte step; byte config) {
end:
  do
  :: atomic { step <= STEPS && started[me] == step - 1 -> run_step(me) }
  :: atomic { step <= STEPS && started[me] >= step && EVERY_RANK_STARTED(step) -> step++ }
  :: break
  od
}
#endif

/* -- an agent: one per node ---------------------------------------------------------------------------------------- */

/* A worker that has left is armed only for gates after its last step: the others may still have to run that step. */
#ifdef MUTANT_LEFT_IS_ARMED
#define LEFT_BEFORE_GATE(r) (left[r])
#else
#define LEFT_BEFORE_GATE(r) (left[r] && gate[plans] > STEPS)
#endif

#define UNHEARD(n, r) (NODE(r) == n && !(heard[n] & (1 << r)) && (promise[r] == plans || LEFT_BEFORE_GATE(r)))
#define HEAR(n, r) atomic { OPEN(plans) && heard_of[n] == plans && UNHEARD(n, r) -> heard[n] = heard[n] | (1 << r) }

#if RANKS == 2
#define LOCAL_RANKS(n) (1 << n)
#elif RANKS == 3
#define LOCAL_RANKS(n) (n == 0 -> 3 : 4)
#endif

#ifdef MUTANT_EARLY_ACK
#define ARMED(n) (heard[n] != 0)
#else
#define ARMED(n) (heard[n] == LOCAL_RANKS(n))
#endif

proctype Agent(byte me) {
end:
  do
  :: atomic { OPEN(plans) && heard_of[me] != plans -> heard_of[me] = plans; heard[me] = 0 }

     /* A worker reports that it is armed, or that it has left. */
  :: HEAR(me, 0)
  :: HEAR(me, 1)
#if RANKS == 3
  :: HEAR(me, 2)
#endif

     /* One ack for the node. An armed worker may have died since, which is harmless. */
  :: atomic { OPEN(plans) && heard_of[me] == plans && ARMED(me) && !(acks & (1 << me)) -> acks = acks | (1 << me) }

     /* The agent crashes. Its successor asks the workers, which hold their promises. */
  :: atomic { forgets > 0 && heard[me] != 0 -> forgets--; heard[me] = 0; heard_of[me] = 0 }
  od
}

/* -- any agent ----------------------------------------------------------------------------------------------------- */

#ifdef MUTANT_COMMIT_ANY_VIEW
#define SAME_VIEW(p) true
#else
#define SAME_VIEW(p) (plan_view[p] == view)
#endif

active proctype AnyAgent() {
end:
  do
  :: atomic { OPEN(plans) && acks == ALL_NODES && SAME_VIEW(plans) ->
       decide(plans, COMMIT);
       previous[plans] = agreed;
       agreed = plans;
       receipts = 0 }

#ifndef MUTANT_WAIT_AT_GATE
     /* A timeout may come at any moment. */
  :: atomic { OPEN(plans) -> decide(plans, ABORT) }
#endif

     /* A leader, or its lease, may end at any moment. */
  :: atomic { token <= ELECTIONS -> token++ }
  od
}

/* -- a leader: two, one of which may not know that it was replaced ------------------------------------------------- */

#ifdef MUTANT_NO_FENCING
#define FENCED(t) false
#else
#define FENCED(t) (token != t)
#endif

#ifdef MUTANT_VIEW_IGNORES_DECISION
#define STILL_AS_READ true
#else
#define STILL_AS_READ (!read_open || decision[read_plan] == NONE)
#endif

inline form_view() {
  view++;
  if
  :: ALL_NEW ->
     agreed = PLANS + view - 1;
     start_values = agreed; start_settled = true;
     receipts = ALL_RANKS
  :: else ->
     start_values = read_agreed;
     if
     :: true -> start_settled = (gate[start_values] == 0)
#ifdef MUTANT_FORGET_PREVIOUS
     :: receipts == ALL_RANKS -> start_settled = true    /* as far as this leader has heard */
#endif
     fi
  fi;
#ifndef MUTANT_VIEW_LEAVES_PLAN_OPEN
  if
  :: read_open -> decide(read_plan, ABORT)
  :: else
  fi;
#endif
  member[0] = incarnation[0];
  member[1] = incarnation[1];
#if RANKS == 3
  member[2] = incarnation[2]
#endif
}

proctype Leader(byte me) {
  byte read_token;    /* not 0: it has read the following under that token and is about to form a view */
  byte read_view;
  byte read_plan;
  bool read_open;
  byte read_agreed;
  byte g = 0;

end:
  do
     /* Plan, with any gate: a bad one must be safe too. Everything read is compared, so the read is not modeled. */
  :: atomic { token % 2 == me && read_token == 0 && plans < PLANS && !OPEN(plans) && running > 0 ->
       plans++;
       select(g : 1 .. STEPS + 1);
       gate[plans] = g; g = 0;
       plan_view[plans] = view;
       acks = 0 }

     /* A registration newer than the view. */
  :: atomic { token % 2 == me && read_token == 0 && SOME_NEW ->
       read_token = token; read_view = view;
       read_plan = plans; read_open = OPEN(plans); read_agreed = agreed }

     /* Members are not compared. A registration after the read changes only itself, so reading the members here
        is equivalent to an earlier transaction; a member may have died since. */
  :: atomic { read_token != 0 ->
       if
       :: !FENCED(read_token) && view == read_view && STILL_AS_READ -> form_view()
       :: else     /* the transaction fails and it starts again */
       fi;
       read_token = 0; read_view = 0; read_plan = 0; read_open = false; read_agreed = 0 }
  od
}

init {
  atomic {
    running = RANKS;
    run Worker(0); run Worker(1);
#if RANKS == 3
    run Worker(2);
#endif
    run Agent(0); run Agent(1);
    run Leader(0); run Leader(1)
  }
}
