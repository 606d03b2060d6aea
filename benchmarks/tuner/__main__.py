from benchmarks.tuner.run import main

raise SystemExit(main())
