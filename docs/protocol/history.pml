/*
 * Step agreement where etcd's history goes back. README.md in this directory lists abstractions and findings;
 * docs/decisions/0016-history.md explains the rules.
 *
 * The promise: all ranks that run a step run it with the same configuration (`run_step`), and when nothing more can
 * happen, every rank has run its last step (`Monitor`). etcd's whole state is copied at some moment and restored at a
 * later one, or deleted. Unlike in agreement.pml, two plans may have the same number: a plan is identified by what the
 * code calls its digest.
 *
 * Macros MUTANT_* break one rule each; LIMIT_* exceeds what is promised. scripts/spin.sh lists those that must fail.
 */

/* -- bounds -------------------------------------------------------------------------------------------------------- */

#define RANKS 2         /* a node and an agent each */
#define ALL_RANKS 3
#ifndef STEPS
#define STEPS 2
#endif
#ifndef PLANS
#define PLANS 2         /* created in total, in both histories */
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef ELECTIONS
#define ELECTIONS 1
#endif
#ifndef EPOCHS
#define EPOCHS 1
#endif

/* -- plans: digest 0 is what training starts with, 1..PLANS each plan in the order of creation --------------------- */

#define NOTHING (PLANS + 1)     /* in place of a digest: etcd was wiped */

byte made;
byte number[PLANS + 2];
byte gate[PLANS + 2];
byte parent[PLANS + 2];
byte plan_view[PLANS + 2];
byte plan_epoch[PLANS + 2];

/* -- etcd: the state that goes back -------------------------------------------------------------------------------- */

#define NONE 0
#define COMMIT 1
#define ABORT 2

typedef Store {
  byte token;                   /* state/leader: odd tokens are leader 1's, even ones leader 0's */
  byte epoch;                   /* state/epoch: number */
  bool settled;
  byte epoch_digest;            /*              what was found to be agreed */
  byte epoch_told;              /*              the highest plan number that any rank had received */
  byte epoch_view;
  byte view;                    /* state/view: number */
  byte member[RANKS];           /*             the incarnation of each rank */
  byte staying;                 /*             bit set of ranks */
  byte start;                   /*             the digest of its start values */
  byte entered;                 /* state/entered */
  byte agreed;                  /* state/agreed: digest */
  byte newest;                  /* the highest number in state/plans */
  byte plan[PLANS + 1];         /* state/plans/<number>: digest; 0 for none */
  byte decision[PLANS + 1];     /* state/plans/<number>/decision */
  byte ack[RANKS];              /* reports/acks of the newest plan: the digest that was promised */
  bool here[RANKS];             /* reports/members/<rank>, the latest to register: whether there is one */
  byte incarnation[RANKS];
  byte in_view[RANKS];          /*   the newest view that it was in, 0 for a new one */
  byte head[RANKS];             /*   the digest that it holds */
  byte in_epoch[RANKS]          /*   the epoch in which it says so */
};

Store etcd;
Store copy;
bool copied;
bool went_back;
byte was_open;                  /* digest: the plan that was undecided in the restored copy */
byte last_token = 1;
byte elections = ELECTIONS;

/* -- a worker, and its agent, which always knows at least as much -------------------------------------------------- */

byte head[RANKS];               /* the newest digest that it knows as agreed */
byte promise[RANKS];            /* the plan whose gate it does not pass before it knows the decision; 0: none */
bool known[RANKS];              /* that plan was committed */
byte in_view[RANKS];            /* the newest view that it was in; 0: it has not begun */
byte met[RANKS];                /* the view that it received; reset to 0 when the history has changed */
byte in_epoch[RANKS];
byte incarnation[RANKS];
bool finished_all[RANKS];

/* -- the training, as an observer sees it -------------------------------------------------------------------------- */

byte started[RANKS];
byte parts[STEPS + 1];
byte used[STEPS + 1];
byte finished;
byte crashes = CRASHES;

#define OTHER(r) (1 - (r))
#define OPEN (etcd.newest != 0 && etcd.decision[etcd.newest] == NONE)
#define NEWEST (etcd.plan[etcd.newest])
#define MAX(a, b) ((a) > (b) -> (a) : (b))
#define IN_STEP(d) (etcd.agreed != NOTHING && ((d) == etcd.agreed || (etcd.agreed != 0 && (d) == parent[etcd.agreed])))

/* The stated limit: no process decides a plan that was undecided in the copy between the restore and the new epoch. */
#ifdef LIMIT_DECIDED_BEFORE_NOTICED
#define MAY_DECIDE(d) true
#else
#define MAY_DECIDE(d) (!(went_back && (d) == was_open && etcd.epoch == plan_epoch[d]))
#endif

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

inline crash(me) {
  crashes--;
  promise[me] = 0; known[me] = false; head[me] = 0; in_view[me] = 0; met[me] = 0; in_epoch[me] = 0;
  incarnation[me]++;
  step = 0; config = 0
}

/* -- a worker and its agent: one process for all incarnations of a rank -------------------------------------------- */

inline register(me) {
  in_epoch[me] = etcd.epoch;
  etcd.here[me] = true;
  etcd.incarnation[me] = incarnation[me];
  etcd.in_view[me] = in_view[me];
  etcd.head[me] = head[me];
  etcd.in_epoch[me] = etcd.epoch
}

#define IS_REGISTERED(me) (etcd.here[me] && etcd.incarnation[me] == incarnation[me] && etcd.in_view[me] == in_view[me] \
  && etcd.in_epoch[me] >= etcd.epoch)

#ifdef MUTANT_PROMISE_WITHOUT_PARENT
#define FOLLOWS(me) true
#else
#define FOLLOWS(me) (parent[NEWEST] == head[me])
#endif

#ifdef MUTANT_NEWCOMERS_DO_NOT_WAIT
#define MAY_BEGIN true
#else
#define MAY_BEGIN (etcd.staying == 0 || etcd.entered >= etcd.view)
#endif

inline learn_commit(me) {
  known[me] = true;
  head[me] = promise[me]
}

inline learn_abort(me) {
  promise[me] = 0; known[me] = false
}

#define IS_THERE(p) (etcd.plan[number[p]] == (p))
#define UNDECIDED(p) (etcd.decision[number[p]] == NONE)

/* An ack names the plan that was promised: another plan may have its number by now. */
#ifdef MUTANT_ACK_BY_NUMBER
#define ACKED(r) (etcd.ack[r] != 0)
#define ACK_COUNTS(p) true
#else
#define ACKED(r) (etcd.ack[r] == NEWEST)
#define ACK_COUNTS(p) (p == NEWEST)
#endif

/* The stated limit: a rank that was the only one to know of a commit, and died, counts as never having run the step. */
#ifdef LIMIT_DIES_WITH_WHAT_IT_KNEW
#define PART_MAY_STAND(me) true
#else
#define PART_MAY_STAND(me) (head[OTHER(me)] == config || (head[OTHER(me)] != 0 && parent[head[OTHER(me)]] == config))
#endif

/* A rank always holds training state: if none does, all restart together, and there is nothing to violate. */
#define MAY_CRASH(me) (crashes > 0 && step != 0 && step <= STEPS && in_view[OTHER(me)] != 0)

#define AT_GATE(me) (promise[me] != 0 && !known[me] && gate[promise[me]] <= step)

proctype Worker(byte me) {
  byte step = 1;
  byte config = 0;

end:
  do
     /* Registered: its identity, what it holds, and in which epoch. */
  :: atomic { !IS_REGISTERED(me) ->
       if
       :: in_epoch[me] != etcd.epoch -> met[me] = 0
       :: else
       fi;
       register(me) }

     /* The agent notices at any moment that the history went back. One of all attempts succeeds. */
  :: atomic { went_back && in_view[me] != 0 && in_epoch[me] >= etcd.epoch && etcd.epoch < EPOCHS ->
       etcd.epoch = MAX(in_epoch[me], etcd.epoch) + 1; etcd.settled = false }

     /* A view: every rank that has trained holds its start values, or the decision before; a newcomer waits for them. */
  :: atomic { step != 0 && etcd.view != 0 && etcd.view >= in_view[me] && met[me] != etcd.view &&
              etcd.member[me] == incarnation[me] && IN_STEP(head[me]) ->
       met[me] = etcd.view; in_view[me] = etcd.view }
  :: atomic { step == 0 && etcd.view != 0 && etcd.member[me] == incarnation[me] && MAY_BEGIN &&
              etcd.agreed != NOTHING && etcd.start == etcd.agreed ->
       met[me] = etcd.view; in_view[me] = etcd.view; in_epoch[me] = etcd.epoch;
       head[me] = etcd.agreed;
       if
       :: head[me] == 0
       :: else -> promise[me] = head[me]; known[me] = true; config = parent[head[me]]
       fi;
       step = started[me] + 1;
       finished_all[me] = step > STEPS }

     /* The newest plan: promised, or aborted by a worker that is past its gate or holds something else. */
  :: atomic { step != 0 && started[me] < step && OPEN && plan_view[NEWEST] == met[me] && promise[me] == 0 &&
              step <= gate[NEWEST] && FOLLOWS(me) && NEWEST != head[me] ->
       promise[me] = NEWEST; known[me] = false }

     /* One ack, which may be delayed arbitrarily. */
  :: atomic { promise[me] != 0 && !known[me] && etcd.ack[me] != promise[me] && etcd.newest == number[promise[me]] &&
              ACK_COUNTS(promise[me]) ->
       etcd.ack[me] = promise[me] }

     /* The decision is received, or requested at the gate. */
  :: atomic { promise[me] != 0 && !known[me] && etcd.agreed == promise[me] -> learn_commit(me) }
  :: atomic { promise[me] != 0 && !known[me] && IS_THERE(promise[me]) && !UNDECIDED(promise[me]) ->
       if
       :: etcd.decision[number[promise[me]]] == COMMIT -> learn_commit(me)
       :: else -> learn_abort(me)
       fi }
  :: atomic { promise[me] != 0 && !known[me] && etcd.settled && etcd.epoch > plan_epoch[promise[me]] ->
       if
       :: etcd.epoch_digest == promise[me] -> learn_commit(me)
       :: else -> learn_abort(me)
       fi }

     /* At the gate: an abort names the plan that was promised, and its epoch. */
#ifdef MUTANT_ABORT_BY_NUMBER
  :: atomic { AT_GATE(me) ->
       if
       :: UNDECIDED(promise[me]) -> etcd.decision[number[promise[me]]] = ABORT
       :: else
       fi;
       if
       :: etcd.decision[number[promise[me]]] == COMMIT -> learn_commit(me)
       :: else -> learn_abort(me)
       fi }
#else
  :: atomic { AT_GATE(me) && IS_THERE(promise[me]) && UNDECIDED(promise[me]) && MAY_DECIDE(promise[me]) &&
              etcd.epoch <= plan_epoch[promise[me]] ->
       etcd.decision[number[promise[me]]] = ABORT;
       learn_abort(me) }
#endif

     /* The gate, then into the step. */
  :: atomic { step != 0 && step <= STEPS && !AT_GATE(me) && started[me] < step ->
       if
       :: promise[me] != 0 && gate[promise[me]] <= step -> config = promise[me]; promise[me] = 0; known[me] = false
       :: else
       fi;
       run_step(me) }

     /* The end of the step: no rank leaves it before all have entered. */
  :: atomic { step != 0 && step <= STEPS && started[me] >= step && started[OTHER(me)] >= step ->
       finished = MAX(finished, step);
       step++;
       finished_all[me] = step > STEPS }

     /* It dies at a boundary, or in a step: then its contribution is lost, or the others finish the step with it. */
  :: atomic { MAY_CRASH(me) && started[me] < step -> crash(me) }
  :: atomic { MAY_CRASH(me) && started[me] == step && finished < step ->
       lose_part(me); crash(me) }
  :: atomic { MAY_CRASH(me) && started[me] == step && PART_MAY_STAND(me) -> crash(me) }
  od
}

#define TOLD(r) MAX(number[head[r]], number[promise[r]])
#define LAST_NUMBER MAX(MAX(etcd.newest, number[etcd.agreed]), etcd.epoch_told)

/* -- a leader: two, one of which may not know that it was replaced ------------------------------------------------- */

#define TRAINED(r) (etcd.here[r] && etcd.in_view[r] != 0)
#define BEHIND(r) (etcd.agreed == NOTHING || number[etcd.head[r]] > number[etcd.agreed] \
  || (number[etcd.head[r]] == number[etcd.agreed] && etcd.head[r] != etcd.agreed))
#define PROVES(r) (TRAINED(r) && (etcd.in_epoch[r] > etcd.epoch \
  || (etcd.in_epoch[r] == etcd.epoch && etcd.settled && \
      (etcd.in_view[r] > MAX(etcd.view, etcd.epoch_view) || BEHIND(r)))))
/* An epoch is settled when every rank, including new ones, is registered in it. */
#if defined(MUTANT_WITHOUT_THE_ABSENT)          /* those that are registered suffice */
#define HAS_SAID(r) (!etcd.here[r] || etcd.in_epoch[r] >= etcd.epoch)
#elif defined(MUTANT_NEW_ONES_NEED_NO_EPOCH)     /* a restored registration may be that of a new rank */
#define HAS_SAID(r) (etcd.here[r] && (etcd.in_view[r] == 0 || etcd.in_epoch[r] >= etcd.epoch))
#else
#define HAS_SAID(r) (etcd.here[r] && etcd.in_epoch[r] >= etcd.epoch)
#endif
#define HAVE_SAID (HAS_SAID(0) && HAS_SAID(1))

#ifdef MUTANT_NO_WRITING_BACK
#define PROOF false
#else
#define PROOF (PROVES(0) || PROVES(1))
#endif

#ifdef MUTANT_NO_EPOCH_FIRST      /* views and plans also before an epoch is settled */
#define CALM true
#define STILL_CALM true
#else
#define CALM (etcd.settled && !PROOF)
#define STILL_CALM etcd.settled
#endif

#define IS_NEW(r) (etcd.here[r] && (etcd.incarnation[r] != etcd.member[r] || etcd.in_view[r] > etcd.view))
#define IS_OUTDATED (etcd.view != 0 && etcd.entered < etcd.view && etcd.start != etcd.agreed)
#define WANTS_VIEW (etcd.here[0] && etcd.here[1] && (etcd.view == 0 || IS_NEW(0) || IS_NEW(1) || IS_OUTDATED))
#define AWAITED (etcd.view != 0 && etcd.entered < etcd.view)
#define BEGAN (etcd.view != 0 && etcd.entered >= etcd.view)
#define STAYS(r) (etcd.in_view[r] != 0 || (BEGAN && etcd.incarnation[r] == etcd.member[r]))
#define IS_IN(r) (!(etcd.staying & (1 << r)) || (etcd.here[r] && etcd.incarnation[r] == etcd.member[r] && \
  etcd.in_view[r] == etcd.view))
#ifdef MUTANT_NEW_ONES_NEED_NO_EPOCH
#define SAYS_ITS_HEAD(r) (etcd.in_view[r] == 0 || etcd.in_epoch[r] >= etcd.epoch)
#else
#define SAYS_ITS_HEAD(r) (etcd.in_epoch[r] >= etcd.epoch)
#endif

/* All ranks that agree hold the newest decision, or the one before it. */
#define HOLDS(d) ((d) == top || (stands == top && top != 0 && (d) == parent[top]))

bool branched;                  /* changes have stopped permanently: a person restarts all ranks */

inline settle() {
  if
  :: TRAINED(0) && (!TRAINED(1) || number[etcd.head[0]] >= number[etcd.head[1]]) -> top = etcd.head[0]
  :: TRAINED(1) && (!TRAINED(0) || number[etcd.head[1]] >= number[etcd.head[0]]) -> top = etcd.head[1]
  :: !TRAINED(0) && !TRAINED(1) -> top = etcd.agreed
  fi;
#ifdef MUTANT_NO_WRITING_BACK
  top = (etcd.agreed == NOTHING -> 0 : etcd.agreed);
  stands = top;
#else
  stands = (IN_STEP(top) -> etcd.agreed : top);
#endif
  if
#ifndef MUTANT_NO_WRITING_BACK
  :: (TRAINED(0) && !HOLDS(etcd.head[0])) || (TRAINED(1) && !HOLDS(etcd.head[1])) -> branched = true
#endif
  :: else ->
     etcd.settled = true; etcd.epoch_digest = stands; etcd.agreed = stands;
     etcd.epoch_told = MAX(MAX(LAST_NUMBER, number[stands]), MAX(TOLD(0), TOLD(1)));
     etcd.epoch_view = MAX(etcd.in_view[0], etcd.in_view[1]);
     if
     :: OPEN -> etcd.decision[etcd.newest] = (NEWEST == stands -> COMMIT : ABORT)
     :: else
     fi;
     if
     :: stands != 0 && number[stands] > etcd.newest ->
        etcd.newest = number[stands]; etcd.plan[number[stands]] = stands; etcd.decision[number[stands]] = COMMIT
     :: else
     fi
  fi;
  top = 0; stands = 0
}

proctype Leader(byte me) {
  byte read_token;    /* not 0: it has read the following under that token and is about to form a view */
  byte read_epoch;
  byte read_view;
  byte read_agreed;
  byte read_open;
  byte read_member[RANKS];
  byte read_staying;
  byte read_number;
  byte top;
  byte stands;

end:
  do
     /* First the epoch, then what the ranks hold, then all else. */
  :: atomic { etcd.token % 2 == me && read_token == 0 && PROOF && etcd.epoch < EPOCHS ->
       etcd.epoch++; etcd.settled = false }
  :: atomic { etcd.token % 2 == me && read_token == 0 && !etcd.settled && HAVE_SAID && !branched -> settle() }

     /* A plan, with any gate. Its number may have been used before. */
  :: atomic { etcd.token % 2 == me && read_token == 0 && CALM && made < PLANS && !OPEN && etcd.agreed != NOTHING &&
              etcd.view != 0 && etcd.entered >= etcd.view ->
       made++;
       select(read_number : 1 .. STEPS);
       gate[made] = read_number;
       read_number = LAST_NUMBER + 1;
       etcd.newest = read_number; etcd.plan[read_number] = made; etcd.decision[read_number] = NONE;
       number[made] = read_number;
       read_number = 0;
       parent[made] = etcd.agreed; plan_view[made] = etcd.view; plan_epoch[made] = etcd.epoch;
       etcd.ack[0] = 0; etcd.ack[1] = 0 }

     /* Its commit. */
  :: atomic { etcd.token % 2 == me && read_token == 0 && CALM && OPEN && plan_view[NEWEST] == etcd.view &&
              ACKED(0) && ACKED(1) && MAY_DECIDE(NEWEST) ->
       etcd.decision[etcd.newest] = COMMIT; etcd.agreed = NEWEST }

     /* Its abort: a timeout, a worker that is late or holds something else. */
  :: atomic { etcd.token % 2 == me && read_token == 0 && CALM && OPEN && MAY_DECIDE(NEWEST) ->
       etcd.decision[etcd.newest] = ABORT }

     /* A view: values that its txn compares, and the registrations, which it does not compare. */
  :: atomic { etcd.token % 2 == me && read_token == 0 && CALM && WANTS_VIEW && SAYS_ITS_HEAD(0) && SAYS_ITS_HEAD(1) &&
              (etcd.agreed != NOTHING || (!STAYS(0) && !STAYS(1))) ->
       read_token = etcd.token; read_epoch = etcd.epoch; read_view = etcd.view; read_agreed = etcd.agreed;
       read_open = (OPEN -> NEWEST : 0);
       read_member[0] = etcd.incarnation[0]; read_member[1] = etcd.incarnation[1];
       read_staying = (STAYS(0) -> 1 : 0) | (STAYS(1) -> 2 : 0);
       read_number = MAX(MAX(etcd.view, etcd.epoch_view), MAX(etcd.in_view[0], etcd.in_view[1])) + 1 }
  :: atomic { read_token != 0 && !(read_open != 0 && !MAY_DECIDE(read_open)) ->
       if
       :: read_token == etcd.token && read_epoch == etcd.epoch && read_view == etcd.view && STILL_CALM &&
          read_agreed == etcd.agreed && (read_open == 0 || UNDECIDED(read_open)) ->
          etcd.view = read_number;
          etcd.member[0] = read_member[0]; etcd.member[1] = read_member[1];
          etcd.staying = read_staying;
          if
          :: etcd.agreed == NOTHING -> etcd.agreed = 0
          :: else
          fi;
          etcd.start = etcd.agreed;
          if
          :: read_staying == 0 -> etcd.entered = etcd.view
          :: else
          fi;
          if
          :: read_open != 0 -> etcd.decision[number[read_open]] = ABORT
          :: else
          fi
       :: else
       fi;
       read_token = 0; read_epoch = 0; read_view = 0; read_agreed = 0; read_open = 0;
       read_member[0] = 0; read_member[1] = 0; read_staying = 0; read_number = 0 }

     /* All ranks that stay have entered it: its newcomers may begin. */
  :: atomic { etcd.token % 2 == me && read_token == 0 && CALM && AWAITED && !IS_OUTDATED &&
              IS_IN(0) && IS_IN(1) ->
       etcd.entered = etcd.view }
  od
}

/* -- etcd is copied, and goes back --------------------------------------------------------------------------------- */

inline put(to, from) {
  to.token = from.token; to.epoch = from.epoch; to.settled = from.settled; to.epoch_digest = from.epoch_digest;
  to.epoch_told = from.epoch_told; to.epoch_view = from.epoch_view; to.view = from.view;
  to.member[0] = from.member[0]; to.member[1] = from.member[1]; to.staying = from.staying; to.start = from.start;
  to.entered = from.entered; to.agreed = from.agreed; to.newest = from.newest;
  to.ack[0] = from.ack[0]; to.ack[1] = from.ack[1];
  to.here[0] = from.here[0]; to.here[1] = from.here[1];
  to.incarnation[0] = from.incarnation[0]; to.incarnation[1] = from.incarnation[1];
  to.in_view[0] = from.in_view[0]; to.in_view[1] = from.in_view[1];
  to.head[0] = from.head[0]; to.head[1] = from.head[1];
  to.in_epoch[0] = from.in_epoch[0]; to.in_epoch[1] = from.in_epoch[1];
  n = 1;
  do
  :: n <= PLANS -> to.plan[n] = from.plan[n]; to.decision[n] = from.decision[n]; n++
  :: else -> break
  od;
  n = 0
}

hidden Store blank;

proctype Backup() {
  byte n;

end:
  do
#ifndef NO_WAY_BACK
  :: atomic { !copied && !went_back -> put(copy, etcd); copied = true }
  :: atomic { copied && !went_back ->
       put(etcd, copy);
       put(copy, blank);
       copied = false; went_back = true;
       was_open = (OPEN -> NEWEST : 0) }
     /* Deleted: another leader is elected at once. */
  :: atomic { !copied && !went_back ->
       put(etcd, blank);
       went_back = true;
       last_token++;
       etcd.token = last_token; etcd.settled = true; etcd.agreed = NOTHING }
#endif
     /* The end of a leader, or of its lease. */
  :: atomic { elections > 0 -> elections--; last_token++; etcd.token = last_token }
  od
}

/* A process that still waits when nothing more can happen waits permanently. */
proctype Monitor() {
end:
  timeout -> assert(branched || (finished_all[0] && finished_all[1]))
}

init {
  atomic {
    etcd.token = 1; etcd.settled = true; etcd.view = 1; etcd.entered = 1;
    etcd.here[0] = true; etcd.here[1] = true; etcd.in_view[0] = 1; etcd.in_view[1] = 1;
    in_view[0] = 1; in_view[1] = 1; met[0] = 1; met[1] = 1;
    run Worker(0); run Worker(1);
    run Leader(0); run Leader(1);
    run Backup(); run Monitor()
  }
}
